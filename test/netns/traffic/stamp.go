package traffic

import (
	"encoding/binary"
	"errors"
	"io"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stamped reads from a packet or raw socket, and tells when the kernel had each
// packet: not when this process came to read it.
type stamped struct {
	file *os.File
	raw  syscall.RawConn
	room []byte // for control messages
}

// newStamped takes a non-blocking socket over.
func newStamped(fd int, name string) (*stamped, error) {
	s := &stamped{file: os.NewFile(uintptr(fd), name), room: make([]byte, unix.CmsgSpace(16))}
	err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS, 1)
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

// read waits for the next packet; io.EOF is the end of the socket.
func (s *stamped) read(b []byte) (n int, at time.Time, err error) {
	var control int
	var failure error
	err = s.raw.Read(func(fd uintptr) bool {
		n, control, _, _, failure = unix.Recvmsg(int(fd), b, s.room, 0)
		return !errors.Is(failure, unix.EAGAIN)
	})
	switch {
	case err != nil:
		return 0, time.Time{}, io.EOF
	case failure != nil:
		return 0, time.Time{}, failure
	}
	return n, stamp(s.room[:control]), nil
}

// stamp is a packet's time as one that this process can compare, whose clock
// is not the one that the kernel stamps with.
func stamp(control []byte) time.Time {
	now := time.Now()
	messages, err := unix.ParseSocketControlMessage(control)
	if err != nil {
		return now
	}
	for _, m := range messages {
		if m.Header.Level != unix.SOL_SOCKET || m.Header.Type != unix.SCM_TIMESTAMPNS || len(m.Data) < 16 {
			continue
		}
		sec, nsec := binary.NativeEndian.Uint64(m.Data), binary.NativeEndian.Uint64(m.Data[8:])
		ago := now.UnixNano() - int64(sec)*int64(time.Second) - int64(nsec)
		if ago > 0 && ago < int64(time.Minute) { // else the clock has been stepped meanwhile
			return now.Add(-time.Duration(ago))
		}
	}
	return now
}
