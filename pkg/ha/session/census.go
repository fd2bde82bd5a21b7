package session

import (
	"context"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
)

const (
	// longest is for how many refreshes at most a table at rest is counted only:
	// what a count cannot show, such as a TCP connection that ends and another
	// that begins, waits for no longer.
	longest = 20
	// renewals is the part of a flow's time-out within which a listing finds it:
	// a standby's copy of it may have a quarter less left (differs), and must not
	// run out while the flow goes on.
	renewals = 4
)

// census is a listing's result in two numbers: while they stay the same, the
// listing would say the same. Asking the kernel how many entries a namespace has
// costs one short answer, listing 100,000 of them most of a second.
type census struct {
	conn   *conntrack.Conn // of which namespace; nil before the first listing
	others int             // entries that the kernel had beyond the table's flows
	until  time.Time       // when to list in any case
}

// counted notes the state after a listing. brief is the shortest time-out, in seconds,
// that a flow of it had. The stream is locked.
func (s *stream) counted(ctx context.Context, conn *conntrack.Conn, brief uint32) {
	s.counts.listings.Add(1)
	s.census = census{}
	n, err := conn.Count(ctx)
	if err != nil {
		return // so it is listed again
	}
	wait := min(time.Duration(brief)*time.Second/renewals, longest*s.opts.Refresh)
	s.census = census{conn: conn, others: n - s.table.live, until: time.Now().Add(wait)}
}

// atRest tells whether the namespace has as many entries as the table accounts for, and
// none of them is to be renewed yet. The stream is locked.
func (s *stream) atRest(ctx context.Context, conn *conntrack.Conn) bool {
	c := &s.census
	if c.conn != conn || !time.Now().Before(c.until) {
		return false
	}
	n, err := conn.Count(ctx)
	return err == nil && n-s.table.live == c.others
}
