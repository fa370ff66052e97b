-- Puts messages on their lines. Returns "" or, if a lane cannot take its part, the name of that lane; then nothing was taken.
-- ARGV: capacity of a lane (-1: do not check), delay in ms (-1: only check), number of lines, the lines, then for each message: id, number of its line, JSON.
local capacity, delay, line_count = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
local first = 4 + line_count
local ids = {}
for i = first, #ARGV, 3 do ids[#ids + 1] = ARGV[i] end

local known, held, seen = get_many(key('ids'), ids), get_many(key('held'), ids), {}
local fresh, per_line = {}, {}
for i, id in ipairs(ids) do
  if not known[i] and not held[i] and not seen[id] then
    seen[id] = true
    fresh[#fresh + 1] = i
    local line = ARGV[3 + tonumber(ARGV[first + 3 * i - 2])]
    per_line[line] = (per_line[line] or 0) + 1
  end
end
if #fresh == 0 then return '' end

local per_lane = {}
for line, number in pairs(per_line) do
  local lane = lane_of(line)
  per_lane[lane] = (per_lane[lane] or 0) + number
end
for lane, number in pairs(per_lane) do
  if capacity >= 0 and tonumber(call('HGET', key('lanes'), lane) or 0) + number > capacity then return lane end
end
if delay < 0 then return '' end
for lane, number in pairs(per_lane) do call('HINCRBY', key('lanes'), lane, number) end

-- What is sent anew is no longer given up.
if call('EXISTS', key('deadids')) == 1 then
  for _, i in ipairs(fresh) do take_letter(ids[i]) end
end

if delay > 0 then
  for _, i in ipairs(fresh) do
    local line = ARGV[3 + tonumber(ARGV[first + 3 * i - 2])]
    local queue = place_of(line)
    call('HSET', key('ids'), ids[i], line .. ' -')
    call('HSET', key('later'), ids[i], ARGV[first + 3 * i - 1])
    call('ZADD', base .. ':delayed:' .. queue, now + delay, ids[i])
    call('SADD', key('queues'), queue)
  end
  -- A waiting worker looks when the first delayed message is due; one of them must learn of this one.
  for line in pairs(per_line) do wake_line(line, 1) end
  return ''
end

local number = numbers(#fresh)
local started = {}
for _, i in ipairs(fresh) do
  local line, entry = ARGV[3 + tonumber(ARGV[first + 3 * i - 2])], number()
  if not started[line] then
    started[line] = seq_of(entry)
    ensure(line)
  end
  append(line, ids[i], ARGV[first + 3 * i - 1], entry)
end
for line, seq in pairs(started) do
  activate(line, seq)
  wake_line(line, per_line[line])
end
return ''
