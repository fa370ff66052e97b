-- Hands deliveries back. Returns the ids that were fenced.
-- ARGV: lease in ms, deliveries after which a message is given up, delay in ms, reason or "", then for each: id, consumer, epoch, receipt.
local lease, most, delay, reason = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), ARGV[4]
local fenced = {}
for at = 5, #ARGV, 4 do
  local id, consumer = ARGV[at], ARGV[at + 1]
  local line, entry, count = owned(id, call('HGET', key('ids'), id), consumer, tonumber(ARGV[at + 2]), ARGV[at + 3], lease)
  if line then
    if reason == '' then
      local before, free = shift_of(id)
      call('HSET', key('shifts'), id, before .. ' ' .. (free + 1))
    end
    -- It never started: its token goes back. Lines that wait for the rate look again when they were told; the token is not lost.
    local rate, per_second, burst, now_at = rate_of(line)
    if rate then
      keep_tokens(rate, per_second, burst, now_at, math.min(burst, tokens_of(rate, per_second, burst, now_at) + 1))
    end
    give_back(id, line, entry, count, consumer, reason == '' and math.huge or most, reason, delay)
  else
    fenced[#fenced + 1] = id
  end
end
return fenced
