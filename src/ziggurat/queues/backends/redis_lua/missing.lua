-- Returns the places (from 0) of those ids of which there is neither a message nor an unacknowledged outcome. ARGV: ids.
local known, held = get_many(key('ids'), ARGV), get_many(key('held'), ARGV)
local missing = {}
for i = 1, #ARGV do
  if not known[i] and not held[i] then missing[#missing + 1] = i - 1 end
end
return missing
