package reconcile

import "time"

// Hints may come by the thousand per second (a flapping interface, another
// agent's churn). Passes that they cause are paid from a bucket of time: it
// gains budgetShare of the time that goes by, so a storm costs a quarter of one
// CPU at most, and holds budgetBurst, so that quiet times pay for a burst. Debt
// is capped so that a drift is looked at within a second even after a pass that
// took long.
const (
	budgetShare = 4 // one part in four
	budgetBurst = 500 * time.Millisecond
	budgetDebt  = 200 * time.Millisecond
	budgetFee   = 5 * time.Millisecond // the least that a pass is charged
)

type budget struct {
	level time.Duration
	at    time.Time
}

func (b *budget) refill(now time.Time) {
	if b.at.IsZero() {
		b.level = budgetBurst
	} else if d := now.Sub(b.at); d > 0 {
		b.level = min(b.level+d/budgetShare, budgetBurst)
	}
	b.at = now
}

// ready returns when the next pass can be paid for.
func (b *budget) ready(now time.Time) time.Time {
	b.refill(now)
	if b.level >= 0 {
		return now
	}
	return now.Add(-b.level * budgetShare)
}

// spend charges a pass that ended now and took d.
func (b *budget) spend(now time.Time, d time.Duration) {
	b.refill(now)
	b.level = max(b.level-max(d, budgetFee), -budgetDebt)
}
