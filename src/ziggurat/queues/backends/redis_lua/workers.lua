-- Returns of each worker that shows itself: ms since the epoch when it was seen, and its JSON.
local answer = {}
local all = call('HGETALL', key('presences'))
for i = 1, #all, 2 do
  local till, seen, body = match(all[i + 1], '^(%d+) (%d+) (.*)$')
  if tonumber(till) > now then answer[#answer + 1] = {tonumber(seen), body} end
end
return answer
