package main

import (
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// What a burst is of each figure: a few milliseconds of it.
const (
	burstOctets      = 4 << 20
	burstRequests    = 10
	burstConnections = 5
)

// Where a station's servers listen, from a port on that is its own.
const (
	sinkPort = iota
	echoPort
	openPort
	stationPorts // so many

	firstPort = 5011
)

// station is a client and a server at the ends of a path that do one burst when
// they are told to, and are quiet otherwise: so paths can be measured in turn
// within milliseconds of each other.
type station struct {
	port    int               // the first of its servers'
	orders  chan func() error // for the client's thread
	results chan error
	stream  int // connection to the sink
	asked   int // connection to the echo
	ended   sync.WaitGroup

	mu   sync.Mutex
	errs []error // of the threads
}

// to is the address of one of the servers.
func (s *station) to(port int) *unix.SockaddrInet4 {
	return &unix.SockaddrInet4{Port: s.port + port, Addr: topo.ServerAddress.As4()}
}

// newStation starts the servers, from a port on, and connects to them. A server that has nothing to
// do for as long as stuck ends: bursts should follow at once.
func newStation(client, server *topo.Machine, port int) (*station, error) {
	s := &station{port: port, orders: make(chan func() error), results: make(chan error), stream: -1, asked: -1}
	s.ended.Go(func() {
		err := client.InNetwork(func() error {
			for order := range s.orders {
				s.results <- order()
			}
			return nil
		})
		s.note(err)
		for range s.orders { // the network could not be entered
			s.results <- err
		}
	})
	for port, serve := range map[int]func(int) (float64, error){sinkPort: sink, echoPort: echo, openPort: answerEach} {
		listening := make(chan error, 1)
		s.ended.Go(func() {
			s.note(server.InNetwork(func() error {
				fd, err := listen(s.to(port))
				listening <- err
				if err != nil {
					return err
				}
				defer unix.Close(fd)
				_, err = serve(fd)
				return err
			}))
		})
		if err := <-listening; err != nil {
			return nil, errors.Join(fmt.Errorf("%s: listen: %w", server.Name, err), s.close())
		}
	}
	err := s.order(func() (err error) {
		if s.stream, err = dial(s.to(sinkPort)); err == nil {
			s.asked, err = dial(s.to(echoPort))
		}
		return err
	})
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%s: %w", client.Name, err), s.close())
	}
	return s, nil
}

// note keeps an error of a thread's for close.
func (s *station) note(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.errs = append(s.errs, err)
}

// order has the client's thread do something.
func (s *station) order(f func() error) error {
	s.orders <- f
	return <-s.results
}

// close ends the station's threads.
func (s *station) close() error {
	err := s.order(func() error {
		for _, fd := range []int{s.stream, s.asked} {
			if fd >= 0 {
				_ = unix.Close(fd)
			}
		}
		return s.openOnce(0)
	})
	close(s.orders)
	s.ended.Wait()
	return errors.Join(append(s.errs, err)...)
}

// timed is how long a burst takes.
func (s *station) timed(burst func() error) (took time.Duration, err error) {
	err = s.order(func() error {
		start := time.Now()
		err := burst()
		took = time.Since(start)
		return err
	})
	return took, err
}

// bursts do one each of the figures, in the order of figures.
var bursts = []func(*station, *result) error{
	func(s *station, r *result) error {
		took, err := s.timed(s.send)
		r.throughput = burstOctets * 8 / took.Seconds()
		return err
	},
	func(s *station, r *result) error {
		took, err := s.timed(s.ask)
		r.latency = took.Seconds() / burstRequests
		return err
	},
	func(s *station, r *result) error {
		took, err := s.timed(s.open)
		r.connections = burstConnections / took.Seconds()
		return err
	},
}

// send sends a burst and waits until it has been received.
func (s *station) send() error {
	buffer := make([]byte, 1<<17)
	for range burstOctets / len(buffer) {
		for rest := buffer; len(rest) > 0; {
			n, err := transfer(unix.Write, s.stream, rest)
			if err != nil {
				return fmt.Errorf("send: %w", err)
			}
			rest = rest[n:]
		}
	}
	_, err := transfer(unix.Read, s.stream, buffer[:1])
	return err
}

// sink says so each time it has received a burst.
func sink(fd int) (float64, error) {
	c, err := accept(fd)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c)
	buffer := make([]byte, 1<<18)
	for total := 0; ; {
		n, err := transfer(unix.Read, c, buffer)
		if err != nil {
			return 0, nil // reset, when the client has had enough
		}
		if total += n; total < burstOctets {
			continue
		}
		total -= burstOctets
		if _, err := transfer(unix.Write, c, buffer[:1]); err != nil {
			return 0, nil
		}
	}
}

func (s *station) ask() error {
	octet := make([]byte, 1)
	for range burstRequests {
		if _, err := transfer(unix.Write, s.asked, octet); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
		if _, err := transfer(unix.Read, s.asked, octet); err != nil {
			return fmt.Errorf("ask: %w", err)
		}
	}
	return nil
}

func (s *station) open() error {
	for range burstConnections {
		if err := s.openOnce(1); err != nil {
			return err
		}
	}
	return nil
}

// openOnce opens, uses and closes a connection; the octet 0 ends the server.
func (s *station) openOnce(octet byte) error {
	c, err := dial(s.to(openPort))
	if err != nil {
		return err
	}
	defer unix.Close(c)
	b := []byte{octet}
	if _, err = transfer(unix.Write, c, b); err == nil {
		_, err = transfer(unix.Read, c, b)
	}
	return err
}
