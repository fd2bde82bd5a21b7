package kernel

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"

	"golang.org/x/sys/unix"
)

// linkMemo keeps what LinkNames returned last, and the socket that tells whether it
// is still true.
type linkMemo struct {
	mu    sync.Mutex
	names LinkNames
	// news hears of every link that is made, changed or gone since before
	// names were listed. nil: nothing is remembered.
	news *os.File
}

// LinkNames remembers what it has listed until the kernel has something to say about
// a link. The kernel queues that before the request returns which changed the link,
// so that a socket without a message proves that nothing has changed; and one that
// has lost messages says so. It is a descriptor, which is kept for the namespace that
// may have thousands of links: there may be thousands of those that have a few.
func (h *handle) LinkNames(ctx context.Context) (LinkNames, error) {
	var names LinkNames
	err := h.use(ctx, func() (err error) {
		list := func() (LinkNames, error) { return h.listLinkNames(ctx) }
		if h.name != "" {
			names, err = list()
			return err
		}
		names, err = h.linkMemo.get(h.listenToLinks, list)
		return err
	})
	return names, err
}

// get listens before it lists: what happens in between is news.
func (m *linkMemo) get(listen func() (*os.File, error), list func() (LinkNames, error)) (LinkNames, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.valid() {
		return m.names, nil
	}
	// What was said and not read, or lost, ends with the socket.
	m.forget()
	news, deaf := listen()
	names, err := list()
	if err != nil {
		return LinkNames{}, errors.Join(err, closeFile(news))
	}
	if deaf == nil { // otherwise they are listed each time
		m.names, m.news = names, news
	}
	return names, nil
}

// valid tells whether nothing has been heard since the names were listed. Which
// message waits, or that reading fails, makes no difference.
func (m *linkMemo) valid() bool {
	if m.news == nil {
		return false
	}
	raw, err := m.news.SyscallConn()
	if err != nil {
		return false
	}
	quiet := false
	err = raw.Control(func(fd uintptr) {
		_, _, failed := unix.Recvfrom(int(fd), make([]byte, 1), unix.MSG_DONTWAIT)
		quiet = errors.Is(failed, unix.EAGAIN)
	})
	return err == nil && quiet
}

// forget has the names listed by the next call.
func (m *linkMemo) forget() {
	_ = closeFile(m.news) // it holds nothing that could fail
	m.news, m.names = nil, LinkNames{}
}

func closeFile(f *os.File) error {
	if f == nil {
		return nil
	}
	return f.Close()
}

// listenToLinks opens a socket that hears of links from now on. Nobody waits for it,
// so that the runtime's poller need not know it.
func (h *handle) listenToLinks() (*os.File, error) {
	var news *os.File
	err := h.visit(func() error {
		fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return fmt.Errorf("open a netlink socket: %w", err)
		}
		news = os.NewFile(uintptr(fd), "netlink")
		return errors.Join(
			// The kernel's minimum: one message says as much as many.
			unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, 0),
			unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: 1 << (unix.RTNLGRP_LINK - 1)}))
	})
	if err != nil {
		return nil, errors.Join(err, closeFile(news))
	}
	return news, nil
}

func (h *handle) listLinkNames(ctx context.Context) (LinkNames, error) {
	request := message{b: make([]byte, unix.SizeofIfInfomsg)}
	request.attrU32(unix.IFLA_EXT_MASK, skipStats)
	type named struct {
		index int
		name  string
	}
	all, err := dumpAll(ctx, h.conn, unix.RTM_GETLINK, request.b, func(body []byte) (n named, ok bool, err error) {
		n.index, n.name, err = parseLinkName(body)
		return n, err == nil, err
	})
	if err != nil {
		return LinkNames{}, fmt.Errorf("list links: %w", err)
	}
	names := LinkNames{ByIndex: make(map[int]string, len(all)), ByName: make(map[string]int, len(all))}
	for _, n := range all {
		names.ByIndex[n.index], names.ByName[n.name] = n.name, n.index
	}
	return names, nil
}

// parseLinkName reads a struct ifinfomsg and the one attribute.
func parseLinkName(body []byte) (index int, name string, err error) {
	if len(body) < unix.SizeofIfInfomsg {
		return 0, "", errTruncated
	}
	err = walk(body, unix.SizeofIfInfomsg, func(typ uint16, v []byte) error {
		if typ == unix.IFLA_IFNAME {
			name = unix.ByteSliceToString(v)
		}
		return nil
	})
	return int(int32(native.Uint32(body[4:]))), name, err //nolint:gosec // as the kernel has it
}
