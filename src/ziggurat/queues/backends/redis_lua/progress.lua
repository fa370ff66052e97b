-- Returns batches of progress and forgets them. ARGV: most batches, token of the waiting call or "".
local found = call('LPOP', key('progress'), ARGV[1]) or {}
if ARGV[2] ~= '' then call('ZREM', base .. ':idle:p', ARGV[2]) end
if #found == 0 and ARGV[2] ~= '' then idle('p', ARGV[2]) end
return found
