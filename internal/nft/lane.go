package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"syscall"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// lane is a lasting connection into the agent's own namespace. It does without
// the library, whose connections start a goroutine for each send and each
// receive and read the clock for each deadline: pods wait for this one. The kernel
// has answered a transaction when the call that sends it returns, so there is
// nothing to wait for.
type lane struct {
	fd       int
	port     uint32 // what the kernel names as the sender in notifications
	sequence uint32
	answer   [nlmsgHeader + 4]byte
}

// nlmsgHeader is the length of struct nlmsghdr (include/uapi/linux/netlink.h).
const nlmsgHeader = 16

// openLane connects to the agent's own namespace.
func (ts *Tables) openLane(ctx context.Context) (*lane, error) {
	c, err := ts.open(ctx, "")
	if err != nil {
		return nil, err
	}
	defer c.close()
	l, err := newLane(c.nl)
	return l, c.wrap("connecting to", err)
}

// newLane takes a connection's socket, which goes on when that is closed: as a
// connection the runtime would wake up for each answer.
func newLane(c *netlink.Conn) (*lane, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	l := &lane{}
	var failed error
	err = raw.Control(func(fd uintptr) { l.fd, failed = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0) })
	if err := errors.Join(err, os.NewSyscallError("fcntl", failed)); err != nil {
		return nil, err
	}
	name, err := unix.Getsockname(l.fd)
	if err != nil {
		return nil, errors.Join(os.NewSyscallError("getsockname", err), l.close())
	}
	nl, ok := name.(*unix.SockaddrNetlink)
	if !ok {
		return nil, errors.Join(fmt.Errorf("a netlink socket is at %T: %w", name, syscall.EINVAL), l.close())
	}
	l.port = nl.Pid
	return l, nil
}

func (l *lane) close() error { return os.NewSyscallError("close", unix.Close(l.fd)) }

// exchange deletes elements of sets and adds others in one transaction. After an
// error answers to it may be on their way: the lane is of no more use.
func (l *lane) exchange(ctx context.Context, remove, add map[string]elements) error {
	b := transactionBytes{sequence: l.sequence}
	b.append(unix.NFNL_MSG_BATCH_BEGIN, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	for _, part := range []struct {
		message uint16
		flags   netlink.HeaderFlags
		of      map[string]elements
	}{{unix.NFT_MSG_DELSETELEM, 0, remove}, {unix.NFT_MSG_NEWSETELEM, netlink.Create, add}} {
		for set, elems := range part.of {
			attributes, err := elementAttributes(set, elems)
			if err != nil {
				return err
			}
			b.append(unix.NFNL_SUBSYS_NFTABLES<<8|part.message, netlink.Acknowledge|part.flags, unix.NFPROTO_INET, 0, attributes)
		}
	}
	first, answers := l.sequence+1, b.sequence-l.sequence-1
	if answers == 0 {
		return nil
	}
	b.append(unix.NFNL_MSG_BATCH_END, 0, unix.AF_UNSPEC, unix.NFNL_SUBSYS_NFTABLES, nil)
	l.sequence = b.sequence
	if err := unix.Sendto(l.fd, b.bytes, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return os.NewSyscallError("send", err)
	}
	for range answers {
		if err := l.receive(ctx, first, b.sequence); err != nil {
			return err
		}
	}
	return nil
}

// receive takes one answer to the messages that are numbered from first to last,
// and returns the error that it is.
func (l *lane) receive(ctx context.Context, first, last uint32) error {
	n, err := l.read(ctx)
	switch {
	case err != nil:
		return os.NewSyscallError("receive", err)
	case n < len(l.answer) || binary.NativeEndian.Uint16(l.answer[4:]) != unix.NLMSG_ERROR:
		return fmt.Errorf("an answer of %d bytes is no acknowledgement: %w", n, syscall.EBADMSG)
	}
	if code := int32(binary.NativeEndian.Uint32(l.answer[nlmsgHeader:])); code != 0 { //nolint:gosec // it is signed
		return syscall.Errno(-code)
	}
	if s := binary.NativeEndian.Uint32(l.answer[8:]); s < first || s > last {
		return fmt.Errorf("an answer to message %d, want %d to %d: %w", s, first, last, syscall.EBADMSG)
	}
	return nil
}

// read reads the beginning of a datagram. It waits only where an answer has been
// lost, and no longer than the context or patience allow.
func (l *lane) read(ctx context.Context) (int, error) {
	n, _, err := unix.Recvfrom(l.fd, l.answer[:], unix.MSG_DONTWAIT)
	if !errors.Is(err, unix.EAGAIN) {
		return n, err
	}
	deadline := time.Now().Add(patience)
	if d, ok := ctx.Deadline(); ok && d.Before(deadline) {
		deadline = d
	}
	for errors.Is(err, unix.EAGAIN) || errors.Is(err, unix.EINTR) {
		rest := time.Until(deadline)
		if rest <= 0 {
			return 0, os.ErrDeadlineExceeded
		}
		if _, err = unix.Poll([]unix.PollFd{{Fd: int32(l.fd), Events: unix.POLLIN}}, int(rest/time.Millisecond)+1); err != nil { //nolint:gosec // a file descriptor is small
			continue
		}
		n, _, err = unix.Recvfrom(l.fd, l.answer[:], unix.MSG_DONTWAIT)
	}
	return n, err
}

// transactionBytes is the messages of a transaction.
type transactionBytes struct {
	bytes    []byte
	sequence uint32 // of the last message plus one
}

// append adds a message: its header, struct nfgenmsg, and attributes, which are
// padded already.
func (b *transactionBytes) append(kind uint16, flags netlink.HeaderFlags, family byte, resource uint16, attributes []byte) {
	b.bytes = binary.NativeEndian.AppendUint32(b.bytes, uint32(nlmsgHeader+4+len(attributes))) //nolint:gosec // an exchange is small
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, kind)
	b.bytes = binary.NativeEndian.AppendUint16(b.bytes, uint16(netlink.Request|flags))
	b.bytes = binary.NativeEndian.AppendUint32(b.bytes, b.sequence)
	b.bytes = binary.NativeEndian.AppendUint32(b.bytes, 0) // to the kernel
	b.bytes = append(b.bytes, family, unix.NFNETLINK_V0)
	b.bytes = binary.BigEndian.AppendUint16(b.bytes, resource)
	b.bytes = append(b.bytes, attributes...)
	b.sequence++
}

// elementAttributes names a set of ours and elements of it (enum
// nft_set_elem_list_attributes in include/uapi/linux/netfilter/nf_tables.h).
func elementAttributes(set string, elems elements) ([]byte, error) {
	enc := netlink.NewAttributeEncoder()
	enc.ByteOrder = binary.BigEndian
	enc.String(unix.NFTA_SET_ELEM_LIST_TABLE, TableName)
	enc.String(unix.NFTA_SET_ELEM_LIST_SET, set)
	enc.Nested(unix.NFTA_SET_ELEM_LIST_ELEMENTS, func(enc *netlink.AttributeEncoder) error {
		for key, chain := range elems {
			enc.Nested(unix.NFTA_LIST_ELEM, func(enc *netlink.AttributeEncoder) error {
				encodeElement(enc, key, chain)
				return nil
			})
		}
		return nil
	})
	b, err := enc.Encode()
	if err != nil {
		return nil, fmt.Errorf("elements of set %s: %w", set, err)
	}
	return b, nil
}

// encodeElement encodes what element makes for the library.
func encodeElement(enc *netlink.AttributeEncoder, key, chain string) {
	enc.Nested(unix.NFTA_SET_ELEM_KEY, func(enc *netlink.AttributeEncoder) error {
		enc.Bytes(unix.NFTA_DATA_VALUE, []byte(key))
		return nil
	})
	if chain == "" {
		return
	}
	enc.Nested(unix.NFTA_SET_ELEM_DATA, func(enc *netlink.AttributeEncoder) error {
		enc.Nested(unix.NFTA_DATA_VERDICT, func(enc *netlink.AttributeEncoder) error {
			enc.Int32(unix.NFTA_VERDICT_CODE, unix.NFT_GOTO)
			enc.String(unix.NFTA_VERDICT_CHAIN, chain)
			return nil
		})
		return nil
	})
}
