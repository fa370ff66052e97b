-- Passes a wake on that reached a call which no longer waits. ARGV: topic.
wake(ARGV[1], 1)
return ''
