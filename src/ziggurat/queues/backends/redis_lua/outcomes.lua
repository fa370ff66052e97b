-- Returns outcomes as a JSON array: those fetched long ago and not acknowledged, then new ones.
-- ARGV: limit, ms after which an outcome comes again, token of the waiting call or "", most bytes.
local limit, lease, token, bytes_left = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3], tonumber(ARGV[4])
local stream, group, reader = key('outcomes'), 'orchestrator', 'orchestrator'
local answer = {}
if token ~= '' then call('ZREM', base .. ':idle:o', token) end

local function give(entries)
  for _, entry in ipairs(entries) do
    local it = {}
    for i = 1, #entry[2], 2 do it[entry[2][i]] = entry[2][i + 1] end
    if it.o then
      answer[#answer + 1] = '{"o":' .. it.o .. '}'
      bytes_left = bytes_left - #it.o
    else
      local beat = it.h ~= '' and ',"h":' .. it.h or ''
      answer[#answer + 1] = '{"m":' .. it.b .. ',"r":' .. cjson.encode(it.r) .. ',"d":' .. it.d .. ',"w":' .. cjson.encode(it.w) .. ',"t":' .. it.t
        .. beat .. '}'
      bytes_left = bytes_left - #it.b
    end
  end
end

if call('EXISTS', stream) == 0 then call('XGROUP', 'CREATE', stream, group, '0', 'MKSTREAM') end

-- The list of those that were fetched is walked at most ten times per lease.
if math.abs(now - tonumber(call('HGET', key('meta'), 'again') or 0)) >= lease / 10 then
  local late = pcall_('XPENDING', stream, group, 'IDLE', lease, '-', '+', math.min(limit, CHUNK))
  if late.err then
    call('XGROUP', 'CREATE', stream, group, '0')
    late = {}
  end
  if #late > 0 then
    local claim = {'XCLAIM', stream, group, reader, lease}
    for i, row in ipairs(late) do claim[5 + i] = row[1] end
    give(call(unpack(claim)))
  else
    call('HSET', key('meta'), 'again', now)
  end
end
local size = 16
while #answer < limit and bytes_left > 0 do
  local wanted = math.min(size, limit - #answer)
  local found = call('XREADGROUP', 'GROUP', group, reader, 'COUNT', wanted, 'STREAMS', stream, '>')
  local entries = found and found[1][2] or {}
  give(entries)
  if #entries < wanted then break end
  size = size * 2
end
if #answer == 0 and token ~= '' then idle('o', token) end
return '[' .. concat(answer, ',') .. ']'
