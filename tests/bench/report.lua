-- One line of plain figures, so that nobody has to parse "1.23ms" back into a number.
function done(summary, latency, requests)
  local e = summary.errors
  io.write(string.format("FIGURES %d %d %d %d %d %d\n",
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99),
    e.read, e.connect + e.write + e.status + e.timeout))
end
