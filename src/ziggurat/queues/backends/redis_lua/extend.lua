-- Renews leases. Returns the ids whose lease is lost.
-- ARGV: lease in ms, then for each: id, consumer, epoch, receipt, heartbeat details as JSON or "".
local lease = tonumber(ARGV[1])
local ids, lost = {}, {}
for i = 2, #ARGV, 5 do ids[#ids + 1] = ARGV[i] end
local indexed = get_many(key('ids'), ids)
for n, id in ipairs(ids) do
  local at = 5 * n - 3
  local line, entry = owned(id, indexed[n], ARGV[at + 1], tonumber(ARGV[at + 2]), ARGV[at + 3], lease)
  if line then
    -- JUSTID leaves the number of deliveries, which is the epoch, as it is.
    call('XCLAIM', stream_of(line), GROUP, ARGV[at + 1], 0, entry, 'JUSTID')
    if ARGV[at + 4] ~= '' then call('HSET', key('beats'), id, ARGV[at + 4]) end
  else
    lost[#lost + 1] = id
  end
end
return lost
