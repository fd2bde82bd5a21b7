package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"syscall"

	"golang.org/x/sys/unix"
)

// requestBuffer limits what waits in the socket of NeighborRequests. A request
// takes about 1 KiB of it (an skb of NLMSG_DEFAULT_SIZE is trimmed to its length
// before it is sent): some hundreds may wait, and the rest is found by listing.
const requestBuffer = 512 << 10

// requestQueue is how many requests wait outside the socket, so that they can be
// answered together.
const requestQueue = 256

func (h *host) NeighborRequests(ctx context.Context, name string) (<-chan NeighborRequest, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	handle, err := h.in(name)
	if err != nil {
		return nil, err
	}
	c, err := handle.subscribeRequests()
	if err != nil {
		return nil, fmt.Errorf("follow neighbor requests in network namespace %q: %w", name, classify(err))
	}
	ctx, _, release := h.register(ctx, name)
	out := make(chan NeighborRequest, requestQueue)
	go func() {
		defer release()
		defer close(out)
		handle.followRequests(ctx, c, out)
	}()
	return out, nil
}

func (h *handle) subscribeRequests() (*conn, error) {
	var c *conn
	err := h.visit(func() (err error) {
		c, err = openConn(unix.NETLINK_ROUTE, unix.RTNLGRP_NEIGH)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := c.onlyRequests(); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// onlyRequests leaves out in the kernel what the group carries besides requests:
// every change of a neighbor.
func (c *conn) onlyRequests() error {
	// The type is at offset 4 of a message (struct nlmsghdr). The filter's
	// machine loads it as big endian.
	wanted := binary.BigEndian.Uint16(native.AppendUint16(nil, unix.RTM_GETNEIGH))
	program := []unix.SockFilter{
		{Code: unix.BPF_LD | unix.BPF_H | unix.BPF_ABS, K: 4},
		{Code: unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K, Jf: 1, K: uint32(wanted)},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0xffffffff},
		{Code: unix.BPF_RET | unix.BPF_K, K: 0},
	}
	var failed error
	err := c.raw.Control(func(fd uintptr) {
		failed = errors.Join(
			unix.SetsockoptSockFprog(int(fd), unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(program)), Filter: &program[0]}),
			unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, requestBuffer))
	})
	if err := errors.Join(err, failed); err != nil {
		return fmt.Errorf("filter a netlink socket: %w", err)
	}
	return nil
}

// followRequests passes requests on until the context ends or the socket fails.
// After an overrun it says that some are lost, on a new socket (see follow).
func (h *handle) followRequests(ctx context.Context, c *conn, out chan<- NeighborRequest) {
	for {
		stop := context.AfterFunc(ctx, func() { _ = c.Close() })
		err := c.requests(ctx, out)
		if !stop() {
			return // closed already
		}
		_ = c.Close()
		if !errors.Is(err, unix.ENOBUFS) {
			return
		}
		if c, err = h.subscribeRequests(); err != nil {
			return
		}
	}
}

func (c *conn) requests(ctx context.Context, out chan<- NeighborRequest) error {
	waiting := []NeighborRequest{{}} // what came before this socket is lost
	for {
		for _, r := range waiting {
			select {
			case out <- r:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
		msgs, err := c.receive()
		if err != nil {
			return err
		}
		waiting = waiting[:0]
		for _, m := range msgs {
			if r, ok := parseRequest(m); ok {
				waiting = append(waiting, r)
			}
		}
	}
}

func parseRequest(m syscall.NetlinkMessage) (NeighborRequest, bool) {
	if m.Header.Type != unix.RTM_GETNEIGH {
		return NeighborRequest{}, false
	}
	n, ok, err := parseNeighbor(m.Data)
	return NeighborRequest{Link: n.Link, Addr: n.Addr}, ok && err == nil
}
