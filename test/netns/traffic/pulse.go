package traffic

import (
	"bufio"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// Pulse knows when a path did not carry datagrams. A client sends one every few
// milliseconds to a server that echoes it. Both are processes of their own that come
// before the load: what they measure is the path, not how busy a machine is.
type Pulse struct {
	server, client *topo.Process
}

// PulsePort is where a Pulse's server listens.
const PulsePort = 7009

const (
	// pulseWord says in the environment which of the two to be.
	pulseWord = "VPCPROXY_LAB_PULSE"
	// shortGap is the shortest time without an echo that is told of, and openGap
	// after how long one is that is not over.
	shortGap, openGap = 25 * time.Millisecond, 50 * time.Millisecond
)

// StartPulse starts this program again on a client and on a server, with a nice
// value; its main function must call RunPulse first.
func StartPulse(client, server *topo.Machine, address netip.Addr, every time.Duration, nice int) (*Pulse, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	p := &Pulse{}
	if p.server, err = server.StartNice(nice, []string{pulseWord + "=server"}, self); err != nil {
		return nil, err
	}
	p.client, err = client.StartNice(nice, []string{fmt.Sprintf("%s=%v %v", pulseWord, address, every)}, self)
	if err != nil {
		p.Stop()
		return nil, err
	}
	return p, nil
}

// Stop ends it.
func (p *Pulse) Stop() {
	for _, process := range []*topo.Process{p.client, p.server} {
		if process != nil {
			_ = process.Kill() // it has ended, or will
		}
	}
}

// Gap is a time without an echo.
type Gap struct {
	// Begin is when the last echo came before it, as the time since a moment that
	// was asked about, and Length its length so far.
	Begin, Length time.Duration
}

// Gaps returns the times without an echo that were not over at a moment.
func (p *Pulse) Gaps(since time.Time) (gaps []Gap, err error) {
	if !p.client.Running() || !p.server.Running() {
		return nil, fmt.Errorf("the pulse has stopped: %s %s", p.client.Log(), p.server.Log())
	}
	now := monotonic()
	begin := now - time.Since(since)
	lines := bufio.NewScanner(strings.NewReader(p.client.Log()))
	var from, to time.Duration
	for lines.Scan() {
		if _, err := fmt.Sscan(lines.Text(), &from, &to); err != nil {
			return nil, fmt.Errorf("the pulse says %q: %w", lines.Text(), err)
		}
		if to > begin {
			gaps = append(gaps, Gap{from - begin, to - from})
		}
	}
	if to == 0 && from > 0 { // it goes on
		gaps = append(gaps, Gap{from - begin, now - from})
	}
	return gaps, nil
}

// Longest returns the longest of Gaps.
func (p *Pulse) Longest(since time.Time) (longest time.Duration, err error) {
	gaps, err := p.Gaps(since)
	for _, g := range gaps {
		longest = max(longest, g.Length)
	}
	return longest, err
}

// RunPulse makes this program what StartPulse wants of it: then it does not
// return but with an error. Otherwise it does nothing.
func RunPulse() error {
	word, ok := os.LookupEnv(pulseWord)
	if !ok {
		return nil
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	if word == "server" {
		return echo(fd)
	}
	var text, every string
	if _, err := fmt.Sscan(word, &text, &every); err != nil {
		return fmt.Errorf("%s=%s: %w", pulseWord, word, err)
	}
	address, err := netip.ParseAddr(text)
	if err != nil {
		return err
	}
	interval, err := time.ParseDuration(every)
	if err != nil {
		return err
	}
	return beat(fd, &unix.SockaddrInet4{Addr: address.As4(), Port: PulsePort}, interval)
}

func echo(fd int) error {
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: PulsePort}); err != nil {
		return err
	}
	b := make([]byte, 64)
	for {
		n, from, err := unix.Recvfrom(fd, b, 0)
		if err == nil {
			_ = unix.Sendto(fd, b[:n], 0, from) // a route may be missing for a while
		}
	}
}

// beat sends, and writes a line for each gap: when it began and when it ended, or 0
// while it goes on.
func beat(fd int, to unix.Sockaddr, every time.Duration) error {
	b := make([]byte, 64)
	next := monotonic()
	var heard, told time.Duration
	for {
		wait := unix.NsecToTimespec(max(next-monotonic(), 0).Nanoseconds())
		_, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &wait, nil)
		if err != nil && err != unix.EINTR {
			return err
		}
		for {
			_, _, err := unix.Recvfrom(fd, b, unix.MSG_DONTWAIT)
			if err == unix.EAGAIN {
				break
			}
			if now := monotonic(); err == nil { // else an ICMP error has come
				if heard > 0 && now-heard > shortGap {
					fmt.Println(int64(heard), int64(now))
				}
				heard = now
			}
		}
		now := monotonic()
		if heard > 0 && heard != told && now-heard > openGap {
			fmt.Println(int64(heard), 0)
			told = heard
		}
		if now >= next {
			_ = unix.Sendto(fd, b[:8], 0, to) // as above
			next = max(next+every, now)
		}
	}
}
