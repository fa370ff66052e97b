-- Shows progress. ARGV: batches to keep, ms to keep them, a batch as a JSON array.
local list = key('progress')
call('RPUSH', list, ARGV[3])
call('LTRIM', list, -tonumber(ARGV[1]), -1)
call('PEXPIRE', list, ARGV[2])
wake('p', 1)
return ''
