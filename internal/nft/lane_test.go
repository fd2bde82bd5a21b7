package nft

import (
	"context"
	"encoding/binary"
	"errors"
	"os"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pairedLane returns a lane whose kernel is the test, by the other end.
func pairedLane(t *testing.T) (l *lane, kernel int) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = errors.Join(unix.Close(fds[0]), unix.Close(fds[1])) })
	return &lane{fd: fds[0]}, fds[1]
}

func acknowledgement(kind uint16, sequence uint32, code int32) []byte {
	b := binary.NativeEndian.AppendUint32(nil, 36)
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, 0)
	b = binary.NativeEndian.AppendUint32(b, sequence)
	b = binary.NativeEndian.AppendUint32(b, 0)
	b = binary.NativeEndian.AppendUint32(b, uint32(code))
	return append(b, make([]byte, 16)...)
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		answer []byte
		want   error
	}{
		"acknowledged":    {acknowledgement(unix.NLMSG_ERROR, 7, 0), nil},
		"refused":         {acknowledgement(unix.NLMSG_ERROR, 7, -int32(unix.EEXIST)), syscall.EEXIST},
		"of another":      {acknowledgement(unix.NLMSG_ERROR, 3, 0), syscall.EBADMSG},
		"of another sort": {acknowledgement(unix.NLMSG_DONE, 7, 0), syscall.EBADMSG},
		"cut short":       {acknowledgement(unix.NLMSG_ERROR, 7, 0)[:18], syscall.EBADMSG},
		"lost":            {nil, os.ErrDeadlineExceeded},
	} {
		t.Run(name, func(t *testing.T) {
			l, kernel := pairedLane(t)
			if c.answer != nil {
				if _, err := unix.Write(kernel, c.answer); err != nil {
					t.Fatal(err)
				}
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			if err := l.receive(ctx, 6, 8); !errors.Is(err, c.want) {
				t.Errorf("got %v, want %v", err, c.want)
			}
		})
	}
}

// An answer that comes late is waited for.
func TestLateAnswer(t *testing.T) {
	l, kernel := pairedLane(t)
	written := make(chan error, 1)
	time.AfterFunc(20*time.Millisecond, func() {
		_, err := unix.Write(kernel, acknowledgement(unix.NLMSG_ERROR, 7, 0))
		written <- err
	})
	if err := errors.Join(l.receive(t.Context(), 6, 8), <-written); err != nil {
		t.Error(err)
	}
}
