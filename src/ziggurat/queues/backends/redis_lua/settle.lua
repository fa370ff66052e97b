-- Publishes outcomes and removes their messages. Returns the ids that were fenced.
-- ARGV: lease in ms, name of this call, then for each: id, consumer, epoch, receipt, status, outcome as JSON.
local lease, by = tonumber(ARGV[1]), ARGV[2]
local ids, fenced = {}, {}
for i = 3, #ARGV, 6 do ids[#ids + 1] = ARGV[i] end
local indexed, seen = get_many(key('ids'), ids), {}
local done, by_line, by_lane, freed = {}, {}, {}, {}

for n, id in ipairs(ids) do
  local at = 6 * n - 3
  local epoch, receipt = tonumber(ARGV[at + 2]), ARGV[at + 3]
  local line, entry = owned(id, not seen[id] and indexed[n], ARGV[at + 1], epoch, receipt, lease)
  if line then
    seen[id] = true
    done[#done + 1] = id
    by_line[line] = by_line[line] or {}
    table.insert(by_line[line], entry)
    local lane = lane_of(line)
    by_lane[lane] = (by_lane[lane] or 0) + 1
    if limits_of(line) then freed[#freed + 1] = {line, id} end
    publish(id, ARGV[at + 4], by, 'o', ARGV[at + 5])
  else
    -- A settle whose answer was lost is repeated: it is done, not fenced.
    local held = not seen[id] and call('HGET', key('held'), id)
    if not held or match(held, '(%S+)$') ~= by then fenced[#fenced + 1] = id end
  end
end
if #done > 0 then
  for line, entries in pairs(by_line) do retire(line, entries) end
  forget(done)
  for lane, number in pairs(by_lane) do count_lane(lane, -number) end
  for _, it in ipairs(freed) do free_slot(it[1], it[2]) end
  wake('o', 1)
end
return fenced
