-- Returns for each queue: name, ready, leased, delayed, dead, ms that the oldest ready message has waited. ARGV: queues; none for all.
local queues = #ARGV > 0 and ARGV or call('SMEMBERS', key('queues'))
local answer = {}
for _, queue in ipairs(queues) do
  local ready, leased, oldest = 0, 0, nil
  -- "0" follows "/" in ASCII: all lines of this queue and of no other.
  for _, line in ipairs(call('ZRANGEBYLEX', key('lines'), '[' .. queue .. '/', '(' .. queue .. '0')) do
    local stream = stream_of(line)
    local pending = pcall_('XPENDING', stream, GROUP)
    if not pending.err then
      local back, later = 0, 0
      for _, row in ipairs(pending[4] or {}) do
        if row[1] == READY then back = tonumber(row[2]) elseif row[1] == LATER then later = tonumber(row[2]) end
      end
      local here = call('XLEN', stream) - pending[1] + back
      ready, leased = ready + here, leased + pending[1] - back - later
      local head = here > 0 and head_of(line)
      if head then oldest = sooner(oldest, tonumber(match(head, '^%d+'))) end
    end
  end
  answer[#answer + 1] = {queue, ready, leased, call('ZCARD', base .. ':delayed:' .. queue), call('XLEN', base .. ':dead:' .. queue),
    oldest and math.max(0, now - oldest) or 0}
end
return answer
