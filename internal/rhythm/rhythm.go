// Package rhythm has the periodic work of a process done at the same moments: what
// is due each second, each two and each ten is due together, so that the kernel
// wakes the process once for all of it.
//
// To wake a Go program costs more than most of what it is woken for: its runtime
// looks for work on several threads, and its monitor naps for 20 µs at a time until
// there is none (runtime.findRunnable, runtime.sysmon).
package rhythm

import "time"

// origin is the moment that all periods begin at.
var origin = time.Now()

// Until returns how long it is to the next multiple of a period since the start of the
// process: more than 0, and no more than the period. Whoever asks again after waiting
// that long keeps the rhythm, however long the work in between takes. It is safe for
// concurrent use.
func Until(period time.Duration) time.Duration { return until(time.Since(origin), period) }

func until(since, period time.Duration) time.Duration { return period - since%period }
