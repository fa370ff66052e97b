-- Shows workers, and forgets those whose time is over. ARGV: ms to show them, 0 to forget them; then worker and JSON of each.
local hash, ttl = key('presences'), tonumber(ARGV[1])
for i = 2, #ARGV, 2 do
  if ttl > 0 then
    call('HSET', hash, ARGV[i], concat({now + ttl, now, ARGV[i + 1]}, ' '))
  else
    call('HDEL', hash, ARGV[i])
  end
end
local all = call('HGETALL', hash)
local last = 0
for i = 1, #all, 2 do
  local till = tonumber(match(all[i + 1], '^%d+'))
  if till <= now then call('HDEL', hash, all[i]) elseif till > last then last = till end
end
if last > now then call('PEXPIREAT', hash, last) end
return ''
