package nft

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Session is a connection into one namespace, for the package that owns another
// table than this one.
type Session struct{ c *conn }

// Open connects to a namespace, by its name. The error wraps
// [io/fs.ErrNotExist] if there is none.
func Open(ctx context.Context, netns string, o Options) (*Session, error) {
	c, err := New(nil, o).open(ctx, netns)
	if err != nil {
		return nil, err
	}
	return &Session{c}, nil
}

// Close ends the connection; what was not committed is not written.
func (s *Session) Close() { s.c.close() }

// Conn is the connection to put changes into.
func (s *Session) Conn() *nftables.Conn { return s.c.Conn }

// Commit makes all changes, or none.
func (s *Session) Commit() error { return s.c.Flush() }

// Outdated reports whether an error of Commit can be due to a change by another
// program between reading and writing.
func Outdated(err error) bool { return outdated(err) }

// Stable calls read, again if anything in the namespace was committed
// meanwhile: the kernel continues a list by counting, and may leave some out.
func (s *Session) Stable(ctx context.Context, read func() error) error {
	for range rounds {
		if err := ctx.Err(); err != nil {
			return err
		}
		before, err := s.c.generation()
		if err != nil {
			return err
		}
		err = read()
		after, genErr := s.c.generation()
		switch {
		case genErr != nil:
			return genErr
		case before == after:
			return err
		}
	}
	return errUnsettled
}

// RawRule is a rule as the kernel lists it.
type RawRule struct {
	Chain   string
	Comment string // as nft(8) shows it
	exprs   []actualExpr
}

// nftnl's attribute type of a rule's comment (libnftnl: include/libnftnl/udata.h).
const udataComment = 0

// CommentData returns the user data that nft(8) shows as a rule's comment, which
// is at most 127 bytes long (NFTNL_UDATA_COMMENT_MAXLEN less its zero).
func CommentData(s string) []byte {
	return append([]byte{udataComment, byte(len(s) + 1)}, s+"\x00"...)
}

func parseComment(data []byte) string {
	for len(data) >= 2 {
		kind, n := data[0], int(data[1])
		if data = data[2:]; n > len(data) {
			return ""
		}
		if kind == udataComment {
			return string(bytes.TrimRight(data[:n], "\x00"))
		}
		data = data[n:]
	}
	return ""
}

// Rules lists the rules of a table, chain by chain in order. A table that is
// absent has none.
func (s *Session) Rules(family nftables.TableFamily, table string) ([]RawRule, error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_RULE_TABLE, Data: []byte(table + "\x00")}})
	if err != nil {
		return nil, err
	}
	msgs, err := s.c.execute(unix.NFT_MSG_GETRULE, uint8(family), netlink.Dump, attrs)
	if errors.Is(err, syscall.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var rules []RawRule
	for _, m := range msgs {
		var r RawRule
		var inner error
		err := attributes(m, func(ad *netlink.AttributeDecoder) {
			switch ad.Type() {
			case unix.NFTA_RULE_CHAIN:
				r.Chain = ad.String()
			case unix.NFTA_RULE_EXPRESSIONS:
				r.exprs, inner = splitExprs(ad.Bytes())
			case unix.NFTA_RULE_USERDATA:
				r.Comment = parseComment(ad.Bytes())
			}
		})
		if err := errors.Join(err, inner); err != nil {
			return nil, err
		}
		rules = append(rules, r)
	}
	return rules, nil
}

// Packets returns what the rule's counter has counted; 0 if it has none.
func (r RawRule) Packets() uint64 {
	for _, e := range r.exprs {
		var c expr.Counter
		if e.name == "counter" && expr.Unmarshal(unix.NFPROTO_UNSPEC, e.data, &c) == nil {
			return c.Packets
		}
	}
	return 0
}

// Is reports whether the rule consists of these expressions; what counters have
// counted is passed over. Attributes are compared one by one as they travel, for
// the library cannot read all that it writes. Such as we have not set, because the
// kernel adds them, must be zero.
func (r RawRule) Is(want []expr.Any) bool {
	if len(want) != len(r.exprs) {
		return false
	}
	for i, w := range want {
		b, err := expr.Marshal(unix.NFPROTO_UNSPEC, w)
		if err != nil {
			return false
		}
		e, err := splitExpr(b)
		if err != nil || e.name != r.exprs[i].name {
			return false
		}
		if e.name != "counter" && !sameAttributes(e.name, e.data, r.exprs[i].data) {
			return false
		}
	}
	return true
}

// nestedIn tells which attributes hold attributes: values (struct nft_data) of
// expressions, verdicts of values.
func nestedIn(parent string, kind uint16) string {
	switch {
	case parent == "cmp" && kind == unix.NFTA_CMP_DATA,
		parent == "immediate" && kind == unix.NFTA_IMMEDIATE_DATA,
		parent == "bitwise" && (kind == unix.NFTA_BITWISE_MASK || kind == unix.NFTA_BITWISE_XOR):
		return "value"
	case parent == "value" && kind == unix.NFTA_DATA_VERDICT:
		return "verdict"
	}
	return ""
}

func sameAttributes(parent string, want, have []byte) bool {
	w, err := attributeMap(want)
	h, err2 := attributeMap(have)
	if err != nil || err2 != nil {
		return false
	}
	if parent == "nat" {
		w, h = withoutDerived(w), withoutDerived(h)
	}
	for kind, value := range w {
		got, ok := h[kind]
		switch child := nestedIn(parent, kind); {
		case !ok,
			child == "" && !bytes.Equal(value, got),
			child != "" && !sameAttributes(child, value, got):
			return false
		}
	}
	for kind, value := range h {
		if _, ok := w[kind]; !ok && len(bytes.Trim(value, "\x00")) > 0 {
			return false
		}
	}
	return true
}

// rangeMapIPs is NF_NAT_RANGE_MAP_IPS (include/uapi/linux/netfilter/nf_nat.h).
const rangeMapIPs = 1

// withoutDerived leaves out what the kernel derives for source NAT
// (net/netfilter/nft_nat.c): the end of a range that has a beginning only, and the
// flag that an address is given.
func withoutDerived(m map[uint16][]byte) map[uint16][]byte {
	if first := m[unix.NFTA_NAT_REG_ADDR_MIN]; bytes.Equal(m[unix.NFTA_NAT_REG_ADDR_MAX], first) {
		delete(m, unix.NFTA_NAT_REG_ADDR_MAX)
	}
	if f := m[unix.NFTA_NAT_FLAGS]; len(f) == 4 {
		m[unix.NFTA_NAT_FLAGS] = binary.BigEndian.AppendUint32(nil, binary.BigEndian.Uint32(f)&^rangeMapIPs)
	} else {
		m[unix.NFTA_NAT_FLAGS] = make([]byte, 4)
	}
	return m
}

func attributeMap(b []byte) (map[uint16][]byte, error) {
	m := map[uint16][]byte{}
	err := nested(b, func(ad *netlink.AttributeDecoder) { m[ad.Type()] = ad.Bytes() })
	return m, err
}
