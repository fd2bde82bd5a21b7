package reconcile

import (
	"math/rand/v2"
	"time"
)

// A failed object is tried again after retryMin, then after twice as long each
// time, up to retryMax (DESIGN.md §6).
const (
	retryMin = 100 * time.Millisecond
	retryMax = time.Minute
)

// pending is an object that is not as it should be.
type pending struct {
	op       Op
	key      any
	text     string // of the key
	err      error
	held     bool // not attempted: another kind must go first
	written  bool // an attempt succeeded, but no list has confirmed it yet
	attempts int  // failed ones in a row
	since    time.Time
	last     time.Time // of the last attempt
	next     time.Time // no attempt before that

	wantGroup string // set unless op is Delete
	haveGroup string // set unless op is Create
}

// backoff returns the pause after the given number of failures, from 80 % to
// 100 % of its nominal length, so that what failed together does not retry
// together.
func backoff(failures int) time.Duration {
	d := retryMin
	for i := 1; i < failures && d < retryMax; i++ {
		d *= 2
	}
	d = min(d, retryMax)
	return d*4/5 + rand.N(d/5)
}

// fail records a failed attempt.
func (p *pending) fail(now time.Time, err error) {
	p.attempts++
	p.err, p.held, p.written = err, false, false
	p.last, p.next = now, now.Add(backoff(p.attempts))
}

// open says whether the object is known not to be as it should be.
func (p *pending) open() bool {
	return p != nil && !p.written
}

// resting says whether the object's next attempt is still to come.
func (p *pending) resting(now time.Time) bool {
	return p != nil && p.attempts > 0 && now.Before(p.next)
}
