-- Does what is due on every queue, idle ones too: ends leases that ran out, readies delayed messages, lets rates go on. Any process may
-- call it at any time; leases are looked at once per interval, whoever calls. Returns the ms until something is due, -1 for nothing, and the
-- server's time in ms.
-- ARGV: lease in ms, deliveries after which a message is given up, interval in ms, entries to look at in one go,
-- ms after which workers that were not seen are forgotten.
local lease, most, interval, budget = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local unseen = tonumber(ARGV[5])
local meta = key('meta')
local due = resume()
for _, queue in ipairs(call('SMEMBERS', key('queues'))) do due = sooner(due, promote(queue)) end

-- Ends the leases of a line that ran out, from an entry on. Returns the entry to go on from when the budget is used up.
local function reclaim(line, start)
  local stream = stream_of(line)
  while true do
    local rows = pcall_('XPENDING', stream, GROUP, 'IDLE', lease, start, '+', 100)
    if rows.err then return nil end
    for _, row in ipairs(rows) do
      local entry, owner, count = row[1], row[2], row[4]
      if owner ~= READY and owner ~= LATER then
        local found = call('XRANGE', stream, entry, entry)[1]
        if found then
          give_back(found[2][2], line, entry, count, owner, most, '', 0)
        else
          call('XACK', stream, GROUP, entry)
        end
      end
    end
    budget = budget - 1 - #rows
    if #rows < 100 then return nil end
    start = '(' .. rows[#rows][1]
    if budget <= 0 then return start end
  end
end

-- Forgets workers of a line that hold nothing and have not been seen for long. (Deleting one with leases would lose them.)
local function sweep(line)
  for _, consumer in ipairs(call('XINFO', 'CONSUMERS', stream_of(line), GROUP)) do
    local it = {}
    for i = 1, #consumer, 2 do it[consumer[i]] = consumer[i + 1] end
    if it.pending == 0 and it.idle >= unseen and it.name ~= READY and it.name ~= LATER then
      call('XGROUP', 'DELCONSUMER', stream_of(line), GROUP, it.name)
    end
  end
end

if math.abs(now - tonumber(call('HGET', meta, 'looked') or 0)) < interval then
  return {due and math.max(0, due - now) or -1, now}
end

-- The cursor is kept on the server, so that a pass goes on where another process left it.
local line, start = match(call('HGET', meta, 'cursor') or '', '^(%S+) (%S+)$')
local sweeping = math.abs(now - tonumber(call('HGET', meta, 'swept') or 0)) > unseen / 10
local from = line and '[' .. line or '-'
while budget > 0 do
  local lines = call('ZRANGEBYLEX', key('lines'), from, '+', 'LIMIT', 0, 50)
  for _, it in ipairs(lines) do
    local rest = reclaim(it, it == line and start or '-')
    if sweeping and not rest and call('EXISTS', stream_of(it)) == 1 then sweep(it) end
    line, from = nil, '(' .. it
    if rest or budget <= 0 then
      call('HSET', meta, 'cursor', it .. ' ' .. (rest or '+'))
      return {0, now}
    end
  end
  if #lines < 50 then
    call('HSET', meta, 'looked', now)
    call('HDEL', meta, 'cursor')
    if sweeping then call('HSET', meta, 'swept', now) end
    return {due and math.max(0, due - now) or -1, now}
  end
end
call('HSET', meta, 'cursor', string.sub(from, 2) .. ' +')
return {0, now}
