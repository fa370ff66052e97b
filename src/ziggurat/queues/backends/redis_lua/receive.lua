-- Leases ready messages to a worker. Returns JSON {"d": [delivery, ...], "t": ms until something is due, -1 for nothing}, where a delivery
-- is {"r": "LINE ENTRY", "n": epoch, "m": message} and, if there are any, "h": heartbeat details, and "s": how often it was delivered,
-- this time included and handed back unstarted not, if more than once.
-- A suspect, a message that was delivered so often in vain, comes alone.
-- ARGV: consumer, limit, token of the waiting call or "", region, name of the view, weights "1:16,2:8,", ageing in ms, most bytes,
-- deliveries after which a message is a suspect, then the queues.
local consumer, limit, token, region = ARGV[1], tonumber(ARGV[2]), ARGV[3], ARGV[4]
local bytes_left, trusted = tonumber(ARGV[8]), tonumber(ARGV[9])
local due = nil

local shelves = {}
for i = 10, #ARGV do
  due = sooner(due, promote(ARGV[i]))
  shelves[#shelves + 1] = ARGV[i] .. '/'
  if region ~= '' then shelves[#shelves + 1] = ARGV[i] .. '/' .. region end
end
due = sooner(due, resume())
if token ~= '' then
  for _, shelf in ipairs(shelves) do call('ZREM', base .. ':idle:w:' .. shelf, token) end
end

local taken, taken_ids = {}, {}
local last_read = {}

local function deliver(line, entry, fields, count)
  taken[#taken + 1] = {line = line, entry = entry, count = count, body = fields[4]}
  taken_ids[#taken_ids + 1] = fields[2]
  bytes_left = bytes_left - #fields[4]
end

-- Of rows that came back, leaves only the first if it is a suspect, and otherwise those before one that is. Says whether there is one: then
-- it is all for now.
local function leave_suspects(stream, back)
  for i, row in ipairs(back) do
    if row[4] >= trusted then
      local found = call('XRANGE', stream, row[1], row[1])[1]
      local _, free = shift_of(found and found[2][2] or '')
      if row[4] - free >= trusted then
        local kept = (i == 1 and #taken == 0) and 1 or i - 1
        for place = #back, kept + 1, -1 do back[place] = nil end
        bytes_left = 0
        return true
      end
    end
  end
  return false
end

-- Leases up to `number` messages of a line: those that came back first, they are the oldest.
local function read(line, number)
  local stream, before = stream_of(line), #taken
  local back = pcall_('XPENDING', stream, GROUP, '-', '+', number, READY)
  if back.err then return 0 end
  local enough = leave_suspects(stream, back)
  if #back > 0 then
    local claim, counts = {'XCLAIM', stream, GROUP, consumer, 0}, {}
    for i, row in ipairs(back) do
      claim[5 + i] = row[1]
      counts[row[1]] = row[4] + 1
    end
    for _, entry in ipairs(call(unpack(claim))) do deliver(line, entry[1], entry[2], counts[entry[1]]) end
  end
  local left = number - (#taken - before)
  if left > 0 and not enough then
    local found = call('XREADGROUP', 'GROUP', GROUP, consumer, 'COUNT', left, 'STREAMS', stream, '>')
    for _, entry in ipairs(found and found[1][2] or {}) do
      deliver(line, entry[1], entry[2], 1)
      last_read[line] = entry[1]
    end
  end
  return #taken - before
end

-- Leases up to `number` messages of a line, a few first: the average tells how many more fit into the answer.
local function read_within(line, number)
  local got, size = 0, 4
  while got < number and bytes_left > 0 do
    local wanted, bytes = math.min(number - got, size), bytes_left
    local found = read(line, wanted)
    got = got + found
    if bytes_left <= 0 then return got, false end
    if found < wanted then return got, true end
    size = math.max(1, math.min(CHUNK, math.floor(bytes_left * found / math.max(1, bytes - bytes_left))))
  end
  return got, false
end

-- Says whether the limits of a line let an attempt start now. If not, the line is parked until that may have changed.
local function held_back(line)
  local name, limit = limits_of(line)
  if not name then return false end
  if limit ~= '' and call('SCARD', base .. ':slots:' .. name) >= tonumber(limit) then
    deactivate(line)
    call('SADD', base .. ':parked:' .. name, line)
    return true
  end
  local rate, per_second, burst, at = rate_of(line)
  if not rate then return false end
  local tokens = tokens_of(rate, per_second, burst, at)
  if tokens >= 1 - 1e-9 then return false end
  local wait = per_second > 0 and math.min((1 - tokens) / per_second, 86400) or 86400
  deactivate(line)
  call('ZADD', key('resume'), now + math.ceil(wait * 1000), line)
  due = sooner(due, now + math.ceil(wait * 1000))
  return true
end

local function occupy(line, id)
  local name, limit = limits_of(line)
  if limit ~= '' then call('SADD', base .. ':slots:' .. name, id) end
  local rate, per_second, burst, at = rate_of(line)
  if rate then keep_tokens(rate, per_second, burst, at, tokens_of(rate, per_second, burst, at) - 1) end
end

-- Levels that may have messages, each with the shelves where.
local levels, level_count = {}, 0
for _, shelf in ipairs(shelves) do
  for _, priority in ipairs(call('SMEMBERS', base .. ':levels:' .. shelf)) do
    if not levels[priority] then
      levels[priority] = {}
      level_count = level_count + 1
    end
    table.insert(levels[priority], shelf)
  end
end

local function heads_of(shelf, priority, namespace) return base .. ':heads:' .. shelf .. '/' .. priority .. '/' .. namespace end

-- Returns what a level serves next: of the namespace that was served longest ago the line with the oldest message that may start.
local function candidate(priority)
  while true do
    local best
    for _, shelf in ipairs(levels[priority]) do
      local top = call('ZRANGE', base .. ':ring:' .. shelf .. '/' .. priority, 0, 0, 'WITHSCORES')
      if top[1] then
        local it = {shelf = shelf, priority = priority, namespace = top[1], turn = tonumber(top[2])}
        local head = call('ZRANGE', heads_of(shelf, priority, it.namespace), 0, 0, 'WITHSCORES')
        it.line, it.seq = head[1], tonumber(head[2]) or 0
        if not best or it.turn < best.turn or (it.turn == best.turn and it.seq < best.seq) then best = it end
      end
    end
    if not best then return nil end
    if not best.line then
      call('ZREM', base .. ':ring:' .. best.shelf .. '/' .. priority, best.namespace)
    elseif not held_back(best.line) then
      return best
    end
  end
end

-- Notes that it was this namespace's turn.
local function served(it)
  local turn = call('HINCRBY', key('meta'), 'turn', 1)
  for _, shelf in ipairs(levels[it.priority]) do
    local ring = base .. ':ring:' .. shelf .. '/' .. it.priority
    if call('ZSCORE', ring, it.namespace) then call('ZADD', ring, turn, it.namespace) end
  end
end

-- Serves one message of a candidate, or many when nothing competes with its line. Says whether there was any.
local function serve(it, number)
  local line = it.line
  local got, short = read_within(line, number)
  if got > 0 then
    if limits_of(line) then occupy(line, taken_ids[#taken_ids]) end
    served(it)
  end
  if short then
    deactivate(line)
  elseif call('ZCARD', heads_of(it.shelf, it.priority, it.namespace)) > 1 then
    local head = head_of(line, last_read[line])
    if head then
      call('ZADD', heads_of(it.shelf, it.priority, it.namespace), seq_of(head), line)
    else
      deactivate(line)
    end
  end
  return got > 0
end

local function alone(it)
  if limits_of(it.line) then return false end
  local others = 0
  for _, shelf in ipairs(levels[it.priority]) do
    local ring = base .. ':ring:' .. shelf .. '/' .. it.priority
    others = others + call('ZCARD', ring)
  end
  return others == 1 and call('ZCARD', heads_of(it.shelf, it.priority, it.namespace)) == 1
end

local function serve_one_level(priority)
  while #taken < limit and bytes_left > 0 do
    local it = candidate(priority)
    if not it then return end
    serve(it, alone(it) and limit - #taken or 1)
  end
end

-- Smooth weighted round-robin: every competing level gains its weight, the richest is served and pays the sum.
local function serve_levels()
  local weights, highest, ageing = {}, nil, tonumber(ARGV[7])
  for level, weight in string.gmatch(ARGV[6], '(%-?%d+):(%d+),') do
    weights[tonumber(level)] = tonumber(weight)
    highest = math.min(highest or tonumber(level), tonumber(level))
  end
  local credits = {}
  for level, credit in string.gmatch(call('HGET', key('turns'), ARGV[5]) or '', '(%-?%d+):(%-?%d+),') do credits[level] = tonumber(credit) end

  local next_of = {}
  local function look(priority)
    while true do
      local it = candidate(priority)
      local head = it and head_of(it.line, last_read[it.line])
      if head then
        it.waited = now - tonumber(match(head, '^%d+'))
        next_of[priority] = it
        return
      elseif it then
        deactivate(it.line)
      else
        next_of[priority] = nil
        return
      end
    end
  end
  for priority in pairs(levels) do look(priority) end

  while #taken < limit and bytes_left > 0 do
    local total, competing, chosen = 0, 0, nil
    for priority, it in pairs(next_of) do
      local level = tonumber(priority)
      if ageing > 0 then level = math.max(highest, level - math.floor(math.max(0, it.waited) / ageing)) end
      local weight = weights[level] or 1
      total, competing = total + weight, competing + 1
      it.gain = weight
    end
    if competing == 0 then break end
    for priority, it in pairs(next_of) do
      if competing > 1 then credits[priority] = (credits[priority] or 0) + it.gain end
      local rich, most = credits[priority] or 0, chosen and (credits[chosen] or 0)
      if not chosen or rich > most or (rich == most and tonumber(priority) < tonumber(chosen)) then chosen = priority end
    end
    if competing > 1 then credits[chosen] = credits[chosen] - total end
    serve(next_of[chosen], 1)
    -- A slot or a token that is used up now may hold back what another level would have served.
    if limits_of(next_of[chosen].line) then
      for priority in pairs(next_of) do look(priority) end
    else
      look(chosen)
    end
  end

  local kept = {}
  for level, credit in pairs(credits) do kept[#kept + 1] = level .. ':' .. credit .. ',' end
  call('HSET', key('turns'), ARGV[5], concat(kept))
  call('PEXPIRE', key('turns'), 86400000)
end

if level_count > 1 then
  serve_levels()
elseif level_count == 1 then
  serve_one_level((next(levels)))
end

if #taken == 0 and token ~= '' then
  for _, shelf in ipairs(shelves) do idle('w:' .. shelf, token) end
end

local beats, shifts = get_many(key('beats'), taken_ids), get_many(key('shifts'), taken_ids)
local answer = {}
for i, it in ipairs(taken) do
  local epoch, counted = it.count, it.count
  if shifts[i] then
    local before, free = match(shifts[i], '^(%d+) (%d+)$')
    epoch, counted = epoch + tonumber(before), counted - tonumber(free)
  end
  local beat = beats[i] and ',"h":' .. beats[i] or ''
  answer[i] = '{"r":"' .. it.line .. ' ' .. it.entry .. '","n":' .. epoch .. (counted > 1 and ',"s":' .. counted or '') .. beat .. ',"m":' .. it.body .. '}'
end
return '{"t":' .. (due and math.max(0, due - now) or -1) .. ',"d":[' .. concat(answer, ',') .. ']}'
