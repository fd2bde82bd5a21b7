package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

const (
	// socketBuffer holds a whole transaction (about 60 bytes an element, so
	// 250,000 of them) and the answers to it.
	socketBuffer = 16 << 20
	// patience bounds a call whose context has no deadline: the kernel answers
	// in milliseconds, but a lost acknowledgement must not hang the caller.
	patience = 30 * time.Second
)

// conn is a netlink connection into one namespace.
type conn struct {
	*nftables.Conn
	nl    *netlink.Conn // the same socket, for requests that the library has not
	netns string
	stop  func() bool
}

func (ts *Tables) open(ctx context.Context, netns string) (*conn, error) {
	c := &conn{netns: netns}
	opts := []nftables.ConnOption{
		nftables.AsLasting(),
		nftables.WithSockOptions(func(nl *netlink.Conn) error {
			c.nl = nl
			return errors.Join(nl.SetWriteBuffer(socketBuffer), nl.SetReadBuffer(socketBuffer))
		}),
	}
	path := ts.options.Own
	if netns != "" {
		path = filepath.Join(ts.options.NetnsDir, netns)
	}
	if path != "" {
		f, err := openNamespace(path)
		if err != nil {
			return nil, c.wrap("connecting to", err)
		}
		defer func() { _ = f.Close() }() // the socket stays in the namespace
		opts = append(opts, nftables.WithNetNSFd(int(f.Fd())))
	}
	lib, err := nftables.New(opts...)
	if err != nil {
		return nil, c.wrap("connecting to", err)
	}
	c.Conn = lib
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok {
		deadline = d
	}
	if err := c.nl.SetDeadline(deadline); err != nil {
		return nil, errors.Join(c.wrap("connecting to", err), lib.CloseLasting())
	}
	c.stop = context.AfterFunc(ctx, func() { _ = c.nl.SetDeadline(time.Unix(1, 0)) })
	return c, nil
}

// openNamespace fails with fs.ErrNotExist if there is no namespace at path. The
// file may be there without one: a creation that did not end leaves it behind.
func openNamespace(path string) (*os.File, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil {
		return nil, errors.Join(&os.PathError{Op: "statfs", Path: path, Err: err}, f.Close())
	}
	if st.Type != unix.NSFS_MAGIC {
		return nil, errors.Join(&os.PathError{Op: "open namespace", Path: path, Err: unix.ENOENT}, f.Close())
	}
	return f, nil
}

func (c *conn) close() {
	c.stop()
	_ = c.CloseLasting() // nothing is buffered in it
}

// wrap names the table and the namespace in an error.
func (c *conn) wrap(doing string, err error) error {
	if err == nil {
		return nil
	}
	where := "the agent's namespace"
	if c.netns != "" {
		where = fmt.Sprintf("namespace %q", c.netns)
	}
	return fmt.Errorf("%s nftables table inet %s in %s: %w", doing, TableName, where, err)
}

// generation returns the ruleset generation: the kernel counts it up at every
// commit in the namespace.
func (c *conn) generation() (uint32, error) {
	msgs, err := c.execute(unix.NFT_MSG_GETGEN, unix.NFPROTO_UNSPEC, 0, nil)
	if err != nil {
		return 0, err
	}
	var id uint32
	for _, m := range msgs {
		err = errors.Join(err, attributes(m, func(ad *netlink.AttributeDecoder) {
			if ad.Type() == unix.NFTA_GEN_ID {
				id = ad.Uint32()
			}
		}))
	}
	return id, err
}

// dump lists all objects of one sort in our table.
func (c *conn) dump(msg uint16, tableAttr uint16) ([]netlink.Message, error) {
	attrs, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: tableAttr, Data: []byte(TableName + "\x00")}})
	if err != nil {
		return nil, err
	}
	return c.execute(msg, unix.NFPROTO_INET, netlink.Dump, attrs)
}

func (c *conn) execute(msg uint16, family uint8, flags netlink.HeaderFlags, attrs []byte) ([]netlink.Message, error) {
	return c.nl.Execute(netlink.Message{
		Header: netlink.Header{
			Type:  netlink.HeaderType(unix.NFNL_SUBSYS_NFTABLES<<8 | msg),
			Flags: netlink.Request | flags,
		},
		// struct nfgenmsg: family, version, resource id.
		Data: append([]byte{family, unix.NFNETLINK_V0, 0, 0}, attrs...),
	})
}

// attributes calls f for each attribute of a message.
func attributes(m netlink.Message, f func(*netlink.AttributeDecoder)) error {
	if len(m.Data) < 4 {
		return errors.New("short netlink message")
	}
	return nested(m.Data[4:], f)
}

// nested calls f for each attribute in b.
func nested(b []byte, f func(*netlink.AttributeDecoder)) error {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return err
	}
	ad.ByteOrder = binary.BigEndian
	for ad.Next() {
		f(ad)
	}
	return ad.Err()
}
