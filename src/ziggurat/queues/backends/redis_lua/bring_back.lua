-- Redrives or discards dead letters; returns how many. ARGV: "redrive" or "discard", then ids.
local redriven = ARGV[1] == 'redrive'
local done = 0
for n = 2, #ARGV do
  local id = ARGV[n]
  local letter = take_letter(id)
  if letter then
    done = done + 1
    if redriven then
      -- If nobody recorded yet that it died, it did not.
      local outcome = match(call('HGET', key('held'), id) or '', '^(%S+)')
      if outcome then
        call('XACK', key('outcomes'), 'orchestrator', outcome)
        call('XDEL', key('outcomes'), outcome)
        call('HDEL', key('held'), id)
      end
      local line, entry = letter.l, numbers(1)()
      ensure(line)
      append(line, id, letter.b, entry)
      -- Its epochs go on, so that old holders stay fenced.
      call('HSET', key('shifts'), id, letter.e .. ' 0')
      if letter.h ~= '' then call('HSET', key('beats'), id, letter.h) end
      count_lane(lane_of(line), 1)
      activate(line, seq_of(entry))
      wake_line(line, 1)
    end
  end
end
return done
