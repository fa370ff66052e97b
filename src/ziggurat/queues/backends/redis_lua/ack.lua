-- Forgets outcomes. After a redrive an id has a second one, of another status, which the acknowledgement of the first must not remove.
-- ARGV: for each: id, status.
local ids, entries, done = {}, {}, {}
for i = 1, #ARGV, 2 do ids[#ids + 1] = ARGV[i] end
local held = get_many(key('held'), ids)
for n, id in ipairs(ids) do
  local entry, status = match(held[n] or '', '^(%S+) (%S+)')
  if status == ARGV[2 * n] then
    entries[#entries + 1] = entry
    done[#done + 1] = id
  end
end
if #done > 0 then
  call_many(entries, 'XACK', key('outcomes'), 'orchestrator')
  call_many(entries, 'XDEL', key('outcomes'))
  call_many(done, 'HDEL', key('held'))
end
return #done
