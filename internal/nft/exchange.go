package nft

import (
	"context"
	"errors"
	"sync"
)

// Exchange deletes steering elements of the agent's own namespace and adds
// others, in one transaction, without reading the table: that takes a tenth of
// a millisecond, however many there are. It can only do what needs no change of
// the rest of the table. done is false, and nothing has changed, if the table
// has no map or mark chain for an element, or not the elements to delete, or has an
// added one with another mark; then use [Tables.Apply]. Chains and maps that the
// last element leaves stay.
//
// No news of it reaches whoever leaves out what [Senders] own.
func (ts *Tables) Exchange(ctx context.Context, remove, add map[Match]Mark) (done bool, err error) {
	if err := (Change{AddSteers: add}).validate(); err != nil {
		return false, err
	}
	ts.laneMu.Lock()
	defer ts.laneMu.Unlock()
	if ts.lane == nil {
		if ts.lane, err = ts.openLane(ctx); err != nil {
			return false, err
		}
		ts.options.Senders.add(ts.lane.port)
	}
	err = ts.lane.exchange(ctx, Contents{Steers: remove}.elements(), Contents{Steers: add}.elements())
	if err == nil {
		return true, nil
	}
	// Answers of the failed transaction may still be on their way.
	err = errors.Join(err, ts.closeLane())
	if outdated(err) {
		return false, nil
	}
	return false, (&conn{}).wrap("writing", err)
}

// closeLane needs laneMu.
func (ts *Tables) closeLane() error {
	ts.options.Senders.remove(ts.lane.port)
	l := ts.lane
	ts.lane = nil
	return l.close()
}

// Close closes what [Tables.Exchange] keeps open.
func (ts *Tables) Close() error {
	ts.laneMu.Lock()
	defer ts.laneMu.Unlock()
	if ts.lane == nil {
		return nil
	}
	return ts.closeLane()
}

// Senders are netlink sockets of this process whose changes of nftables need no
// second look. The zero value has none, as has nil. It is safe for concurrent use.
type Senders struct {
	mu  sync.Mutex
	ids map[uint32]struct{}
}

// Own tells whether a notification's sender (nlmsg_pid) is one of them.
func (s *Senders) Own(portID uint32) bool {
	if s == nil {
		return false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	_, own := s.ids[portID]
	return own
}

func (s *Senders) add(id uint32) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ids == nil {
		s.ids = map[uint32]struct{}{}
	}
	s.ids[id] = struct{}{}
}

func (s *Senders) remove(id uint32) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.ids, id)
}
