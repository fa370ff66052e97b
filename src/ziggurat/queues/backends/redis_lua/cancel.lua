-- Removes messages that wait and tells the workers that hold leased ones. ARGV: ids.
local indexed = get_many(key('ids'), ARGV)
for i, id in ipairs(ARGV) do
  -- Looked up again when a batch names an id twice.
  local line, entry = match(indexed[i] and call('HGET', key('ids'), id) or '', '^(%S+) (%S+)$')
  if line then
    local pending = entry == '-' and {} or call('XPENDING', stream_of(line), GROUP, entry, entry, 1)
    local worker = pending[1] and pending[1][2]
    if worker and worker ~= READY and worker ~= LATER then
      if call('HSETNX', key('told'), id, worker) == 1 then
        call('SADD', base .. ':cancelled:' .. worker, id)
        wake('c:' .. worker, 1)
      end
    else
      if entry == '-' or worker == LATER then call('ZREM', base .. ':delayed:' .. place_of(line), id) end
      forget({id})
      count_lane(lane_of(line), -1)
      if entry == '-' then call('HDEL', key('later'), id) else retire(line, {entry}, true) end
    end
  end
end
return ''
