// Package flow ends connections that the kernel tracks (nf_conntrack): those of
// a pod that has lost an attachment, with the address translation that they
// had. Only flows in zones that the caller knows as its own are touched.
package flow

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Flow is a tracked connection as the sender of its first packet sees it.
type Flow struct {
	Zone     uint16 // 0: the common zone
	Src, Dst netip.Addr
}

// Table is the connections of one network namespace. It keeps nothing between
// calls and is safe for concurrent use.
type Table struct {
	path string
}

// Open returns the table of the namespace at a path; "" is the calling thread's.
func Open(path string) *Table { return &Table{path: path} }

const (
	// socketBuffer holds what the kernel sends of a dump before it is read.
	socketBuffer = 4 << 20
	// patience bounds a call whose context has no deadline.
	patience = 30 * time.Second
)

// Attributes and flags that package unix has not (enum ctattr_type, ctattr_tuple, ctattr_ip and
// ctattr_filter in include/uapi/linux/netfilter/nfnetlink_conntrack.h, and
// CTA_FILTER_F_CTA_IP_SRC in net/netfilter/nf_internals.h).
const (
	msgGet, msgDelete = 1, 2

	ctaTupleOrig, ctaID, ctaZone, ctaFilter = 1, 12, 18, 25
	ctaTupleIP                              = 1
	ctaIPv4Src, ctaIPv4Dst                  = 1, 2
	ctaIPv6Src, ctaIPv6Dst                  = 3, 4
	ctaFilterOrig, ctaFilterReply           = 1, 2
	filterIPSrc                             = 1 << 0
)

// entry is a Flow and what the kernel knows it by.
type entry struct {
	Flow
	tuple, zone, id []byte
}

// End ends the flows for which ends returns true, and returns their number. It
// looks at those that src has opened, or at all if src is the zero Addr; which
// takes a walk through the whole table, a few milliseconds. ends may be called while
// others come and go.
func (t *Table) End(ctx context.Context, src netip.Addr, ends func(Flow) bool) (n int, err error) {
	c, err := t.dial(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { _ = c.Close() }()
	request, err := dumpRequest(src)
	if err != nil {
		return 0, err
	}
	msgs, err := c.Execute(request)
	if err != nil {
		return 0, fmt.Errorf("list connections: %w", err)
	}
	var errs []error
	for _, m := range msgs {
		e, err := parse(m.Data)
		if err != nil {
			return n, fmt.Errorf("list connections: %w", err)
		}
		if src.IsValid() && e.Src != src || !ends(e.Flow) {
			continue
		}
		switch err := remove(c, m.Data[0], e); {
		case err == nil:
			n++
		case !errors.Is(err, unix.ENOENT): // else it has ended by itself
			errs = append(errs, fmt.Errorf("end the connection from %s to %s: %w", e.Src, e.Dst, err))
		}
	}
	return n, errors.Join(errs...)
}

func (t *Table) dial(ctx context.Context) (*netlink.Conn, error) {
	var cfg netlink.Config
	if t.path != "" {
		f, err := os.Open(t.path)
		if err != nil {
			return nil, fmt.Errorf("list connections: %w", err)
		}
		defer func() { _ = f.Close() }() // the socket stays in the namespace
		cfg.NetNS = int(f.Fd())
	}
	c, err := netlink.Dial(unix.NETLINK_NETFILTER, &cfg)
	if err != nil {
		return nil, fmt.Errorf("list connections: %w", err)
	}
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	if err := errors.Join(c.SetReadBuffer(socketBuffer), c.SetDeadline(deadline)); err != nil {
		return nil, errors.Join(fmt.Errorf("list connections: %w", err), c.Close())
	}
	return c, nil
}

func request(msg uint16, flags netlink.HeaderFlags, family byte, attributes func(*netlink.AttributeEncoder)) (netlink.Message, error) {
	enc := netlink.NewAttributeEncoder()
	enc.ByteOrder = binary.BigEndian
	attributes(enc)
	b, err := enc.Encode()
	return netlink.Message{
		Header: netlink.Header{Type: netlink.HeaderType(unix.NFNL_SUBSYS_CTNETLINK<<8 | msg), Flags: netlink.Request | flags},
		// struct nfgenmsg: family, version, resource id.
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, b...),
	}, err
}

func dumpRequest(src netip.Addr) (netlink.Message, error) {
	all := func(*netlink.AttributeEncoder) {}
	switch {
	case !src.IsValid():
		return request(msgGet, netlink.Dump, unix.AF_UNSPEC, all)
	case src.Is6():
		// The kernel's filter by an IPv6 address leaves out those that have it
		// (ctnetlink_filter_match_tuple, as of Linux 6.18).
		return request(msgGet, netlink.Dump, unix.AF_INET6, all)
	}
	return request(msgGet, netlink.Dump, unix.AF_INET, func(enc *netlink.AttributeEncoder) {
		enc.Nested(ctaTupleOrig, func(enc *netlink.AttributeEncoder) error {
			enc.Nested(ctaTupleIP, func(enc *netlink.AttributeEncoder) error {
				enc.Bytes(ctaIPv4Src, src.AsSlice())
				return nil
			})
			return nil
		})
		enc.Nested(ctaFilter, func(enc *netlink.AttributeEncoder) error {
			// These two alone are not in network byte order.
			enc.Bytes(ctaFilterOrig, binary.NativeEndian.AppendUint32(nil, filterIPSrc))
			enc.Bytes(ctaFilterReply, binary.NativeEndian.AppendUint32(nil, 0))
			return nil
		})
	})
}

func remove(c *netlink.Conn, family byte, e entry) error {
	m, err := request(msgDelete, netlink.Acknowledge, family, func(enc *netlink.AttributeEncoder) {
		enc.Bytes(netlink.Nested|ctaTupleOrig, e.tuple)
		enc.Bytes(ctaID, e.id)
		if e.zone != nil {
			enc.Bytes(ctaZone, e.zone)
		}
	})
	if err != nil {
		return err
	}
	_, err = c.Execute(m)
	return err
}

func parse(b []byte) (entry, error) {
	var e entry
	if len(b) < 4 {
		return e, errors.New("a message is too short")
	}
	err := each(b[4:], func(typ uint16, v []byte) error {
		switch typ {
		case ctaTupleOrig:
			e.tuple = v
			return e.parseTuple(v)
		case ctaZone:
			if len(v) != 2 {
				return errors.New("a zone is not of two bytes")
			}
			e.zone, e.Zone = v, binary.BigEndian.Uint16(v)
		case ctaID:
			e.id = v
		}
		return nil
	})
	return e, err
}

func (e *entry) parseTuple(b []byte) error {
	return each(b, func(typ uint16, v []byte) error {
		if typ != ctaTupleIP {
			return nil
		}
		return each(v, func(typ uint16, v []byte) error {
			a, ok := netip.AddrFromSlice(v)
			if !ok {
				return errors.New("an address is of no family")
			}
			switch typ {
			case ctaIPv4Src, ctaIPv6Src:
				e.Src = a
			case ctaIPv4Dst, ctaIPv6Dst:
				e.Dst = a
			}
			return nil
		})
	})
}

func each(b []byte, f func(typ uint16, v []byte) error) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	for ad.Next() {
		if err := f(ad.Type(), ad.Bytes()); err != nil {
			return err
		}
	}
	return ad.Err()
}
