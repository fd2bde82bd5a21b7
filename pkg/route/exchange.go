package route

import (
	"context"

	"github.com/vpcproxy/vpcproxy/internal/desired"
	"github.com/vpcproxy/vpcproxy/internal/nft"
)

// Exchange takes some steers of the agent's own namespace away and puts others
// in place, in one step for the packets: they meet the old ones or the new ones.
// With it a pod is bound without waiting for the engine's next pass, and while
// one is under way.
//
// The caller sees to it that what the engine wants from now on agrees, and that
// what the new ones lead to is in place: rules and refusals. After an error
// nothing, or all, has been written: the engine's next pass finds out which.
//
// It takes a fraction of a millisecond, unless a part of the table is used
// for the first time, or for the last.
func (s *Steers) Exchange(ctx context.Context, remove, add map[desired.SteerKey]desired.Steer) error {
	remove, add = exceptSame(remove, add)
	ch := nft.Change{AddSteers: map[nft.Match]nft.Mark{}}
	for k, v := range add {
		if err := addSteer(&ch, k, v); err != nil {
			return err
		}
	}
	old := map[nft.Match]nft.Mark{}
	for k, v := range remove {
		old[nft.Match{Src: k.Src, Dst: k.Dst}] = markOf(v)
		if _, replaced := add[k]; !replaced {
			ch.DeleteSteers = append(ch.DeleteSteers, nft.Match{Src: k.Src, Dst: k.Dst})
		}
	}
	if len(remove)+len(add) == 0 {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.exchange(ctx, old, ch); err != nil {
		return err
	}
	s.uses.add(old, -1)
	s.uses.add(ch.AddSteers, 1)
	if s.exchanged == nil {
		s.exchanged = map[desired.SteerKey]desired.Steer{}
	}
	for k := range remove {
		s.exchanged[k] = desired.Steer{}
	}
	for k, v := range add {
		s.exchanged[k] = v
	}
	return nil
}

// exchange leaves it to the table to clean up after its last element: no chain
// and no map stays that nothing uses.
func (s *Steers) exchange(ctx context.Context, old map[nft.Match]nft.Mark, ch nft.Change) error {
	if s.uses.remain(old, ch.AddSteers) {
		done, err := s.table.Exchange(ctx, old, ch.AddSteers)
		if done || err != nil {
			return err
		}
	}
	return s.table.Apply(ctx, "", ch)
}

// exceptSame leaves out what is to be removed and added alike.
func exceptSame(remove, add map[desired.SteerKey]desired.Steer) (r, a map[desired.SteerKey]desired.Steer) {
	r, a = map[desired.SteerKey]desired.Steer{}, map[desired.SteerKey]desired.Steer{}
	for k, v := range remove {
		if w, ok := add[k]; !ok || w != v {
			r[k] = v
		}
	}
	for k, v := range add {
		if w, ok := remove[k]; !ok || w != v {
			a[k] = v
		}
	}
	return r, a
}

// takeOver corrects a list by what was written while it was read.
func (s *Steers) takeOver(list map[desired.SteerKey]desired.Steer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, damaged := list[desired.SteerKey{}]; !damaged {
		for k, v := range s.exchanged {
			if v == (desired.Steer{}) {
				delete(list, k)
			} else {
				list[k] = v
			}
		}
	}
	s.uses = uses{}
	for k, v := range list {
		if k.Netns == "" && k.Src.IsValid() {
			s.uses.count(nft.Match{Src: k.Src, Dst: k.Dst}, markOf(v), 1)
		}
	}
}

// uses counts the elements of each map, and those that go to each mark chain.
type uses struct {
	pairs map[pair]int
	marks map[nft.Mark]int
}

// pair is what maps go by.
type pair struct {
	v6       bool
	src, dst int
}

func pairOf(m nft.Match) pair {
	return pair{v6: m.Src.Addr().Is6(), src: m.Src.Bits(), dst: m.Dst.Bits()}
}

func (u *uses) count(match nft.Match, mark nft.Mark, n int) {
	if u.pairs == nil {
		u.pairs, u.marks = map[pair]int{}, map[nft.Mark]int{}
	}
	u.pairs[pairOf(match)] += n
	u.marks[mark] += n
}

func (u *uses) add(elements map[nft.Match]nft.Mark, n int) {
	for match, mark := range elements {
		u.count(match, mark, n)
	}
}

// remain tells whether everything that is in use now will be.
func (u *uses) remain(remove, add map[nft.Match]nft.Mark) bool {
	if len(remove) == 0 {
		return true
	}
	after := uses{}
	after.add(add, 1)
	after.add(remove, -1)
	for p, n := range after.pairs {
		if n < 0 && u.pairs[p]+n <= 0 {
			return false
		}
	}
	for m, n := range after.marks {
		if n < 0 && u.marks[m]+n <= 0 {
			return false
		}
	}
	return true
}

func markOf(s desired.Steer) nft.Mark {
	return nft.Mark{Mark: s.Mark, Mask: s.Mask, Zone: s.Zone, Refuse: s.Refuse}
}

func steerOf(m nft.Mark) desired.Steer {
	return desired.Steer{Mark: m.Mark, Mask: m.Mask, Zone: m.Zone, Refuse: m.Refuse}
}
