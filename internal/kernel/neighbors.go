package kernel

import (
	"context"
	"fmt"
	"net/netip"
	"slices"

	"golang.org/x/sys/unix"
)

func (h *handle) Neighbors(ctx context.Context) ([]Neighbor, error) {
	var all []Neighbor
	err := h.use(ctx, func() error {
		request := make([]byte, unix.SizeofNdMsg) // any family, any link
		listed, err := dumpAll(ctx, h.conn, unix.RTM_GETNEIGH, request, parseNeighbor)
		if err != nil {
			return fmt.Errorf("list neighbors: %w", err)
		}
		all, err = h.onTunnels(ctx, listed)
		return err
	})
	return all, err
}

// onTunnels keeps the entries of links whose link-layer addresses are IPv4
// addresses. An entry without a link-layer address does not tell by itself.
func (h *handle) onTunnels(ctx context.Context, listed []Neighbor) ([]Neighbor, error) {
	var tunnels map[int]bool
	kept := listed[:0]
	for _, n := range listed {
		if !n.NBMA.IsValid() {
			if tunnels == nil {
				var err error
				if tunnels, err = h.tunnels(ctx); err != nil {
					return nil, err
				}
			}
			if !tunnels[n.Link] {
				continue
			}
		}
		kept = append(kept, n)
	}
	return kept, nil
}

// tunnels returns the links whose link-layer addresses are IPv4 addresses.
func (h *handle) tunnels(ctx context.Context) (map[int]bool, error) {
	request := make([]byte, unix.SizeofIfInfomsg)
	links, err := dumpAll(ctx, h.conn, unix.RTM_GETLINK, request, func(body []byte) (int, bool, error) {
		if len(body) < unix.SizeofIfInfomsg {
			return 0, false, errTruncated
		}
		// ifi_type behind the family and its padding, then ifi_index.
		return int(native.Uint32(body[4:])), native.Uint16(body[2:]) == unix.ARPHRD_IPGRE, nil
	})
	if err != nil {
		return nil, fmt.Errorf("list links: %w", err)
	}
	tunnels := make(map[int]bool, len(links))
	for _, index := range links {
		tunnels[index] = true
	}
	return tunnels, nil
}

// parseNeighbor reads a struct ndmsg and its attributes. It leaves out entries
// whose link-layer address is of another length, and the ones that the kernel
// makes for itself on links without address resolution (NUD_NOARP).
func parseNeighbor(body []byte) (Neighbor, bool, error) {
	if len(body) < unix.SizeofNdMsg {
		return Neighbor{}, false, errTruncated
	}
	if body[0] != unix.AF_INET && body[0] != unix.AF_INET6 {
		return Neighbor{}, false, nil
	}
	n := Neighbor{
		Link:  int(native.Uint32(body[4:])),
		State: NeighborState(native.Uint16(body[8:])),
	}
	other := n.State == unix.NUD_NOARP
	err := walk(body, unix.SizeofNdMsg, func(typ uint16, v []byte) (err error) {
		switch typ {
		case unix.NDA_DST:
			n.Addr, err = getAddr(v)
		case unix.NDA_LLADDR:
			if len(v) == 4 {
				n.NBMA = netip.AddrFrom4([4]byte(v))
			} else {
				other = true
			}
		}
		return err
	})
	return n, err == nil && !other && n.Addr.IsValid(), err
}

func (h *handle) ReplaceNeighbors(ctx context.Context, ns []Neighbor) []error {
	return h.useBatch(ctx, len(ns), func(i int) string {
		return fmt.Sprintf("set neighbor %s to %s on link %d", ns[i].Addr, ns[i].NBMA, ns[i].Link)
	}, func() []error { return batchValid(ctx, h.conn, ns, Neighbor.Validate, putReplacement) })
}

func putReplacement(n Neighbor, m *message, seq uint32) {
	m.begin(unix.RTM_NEWNEIGH, unix.NLM_F_CREATE|unix.NLM_F_REPLACE, seq)
	putNeighbor(m, n)
	nbma := n.NBMA.As4()
	m.attr(unix.NDA_LLADDR, nbma[:])
	m.end()
}

func putDeletion(n Neighbor, m *message, seq uint32) {
	m.begin(unix.RTM_DELNEIGH, 0, seq)
	putNeighbor(m, n)
	m.end()
}

func (h *handle) AnswerNeighbors(ctx context.Context, ns []Neighbor) []error {
	errs := h.useBatch(ctx, len(ns), func(i int) string {
		return fmt.Sprintf("answer for neighbor %s on link %d", ns[i].Addr, ns[i].Link)
	}, func() []error {
		c, err := h.answering()
		if err != nil {
			return slices.Repeat([]error{err}, len(ns))
		}
		check := func(n Neighbor) error {
			if !n.NBMA.IsValid() {
				return needAddr("a neighbor's address", n.Addr)
			}
			return n.Validate()
		}
		return batchValid(ctx, c, ns, check, func(n Neighbor, m *message, seq uint32) {
			if n.NBMA.IsValid() {
				putReplacement(n, m, seq)
			} else {
				putDeletion(n, m, seq)
			}
		})
	})
	for i, n := range ns {
		if !n.NBMA.IsValid() {
			errs[i] = absentIsSuccess(errs[i])
		}
	}
	return errs
}

// answering returns the connection for answers, whose port Watch passes over.
func (h *handle) answering() (*conn, error) {
	return h.lazy(&h.answers, unix.NETLINK_ROUTE, func(c *conn) error {
		port, err := c.port()
		h.answerPort.Store(port)
		return err
	})
}

func (h *handle) DeleteNeighbors(ctx context.Context, ns []Neighbor) []error {
	errs := h.useBatch(ctx, len(ns), func(i int) string {
		return fmt.Sprintf("delete neighbor %s on link %d", ns[i].Addr, ns[i].Link)
	}, func() []error {
		check := func(n Neighbor) error { return needAddr("a neighbor's address", n.Addr) }
		return batchValid(ctx, h.conn, ns, check, putDeletion)
	})
	return eachAbsentIsSuccess(errs)
}

// Validate says why ReplaceNeighbors would refuse the entry.
func (n Neighbor) Validate() error {
	if !n.NBMA.Is4() {
		return fmt.Errorf("the NBMA address must be IPv4")
	}
	return needAddr("a neighbor's address", n.Addr)
}

func putNeighbor(m *message, n Neighbor) {
	m.u8(familyOf(n.Addr), 0, 0, 0)
	m.u32(uint32(n.Link))
	state := n.State
	if state == 0 {
		state = NeighborPermanent
	}
	m.b = native.AppendUint16(m.b, uint16(state))
	m.u8(0, 0) // flags, type
	m.attrAddr(unix.NDA_DST, n.Addr)
}
