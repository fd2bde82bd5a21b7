// Package traffic sends packets through a lab and tells what became of them:
// servers that say who they are and whom they saw, clients that count what is
// lost, and captures. All sockets are this process's own, opened inside the
// machines, so that nothing need be started there.
package traffic

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/vpcproxy/vpcproxy/test/netns/topo"
)

// The ports of a Server.
const (
	HTTPPort = 80
	EchoPort = 7 // TCP and UDP (RFC 862), except that TCP begins with an Answer
)

// Answer is what a server says about an encounter.
type Answer struct {
	Server string         `json:"server"` // the name of the server
	Client netip.AddrPort `json:"client"` // the source that the server saw
}

// Server answers on every address of a machine: HTTP, TCP echo and UDP echo.
type Server struct {
	name     string
	http     *http.Server
	listener net.Listener
	packets  net.PacketConn
	tasks    sync.WaitGroup

	mu    sync.Mutex
	conns map[net.Conn]struct{}
	seen  []netip.AddrPort
}

// Serve starts a server under a name.
func Serve(m *topo.Machine, name string) (*Server, error) {
	s := &Server{name: name, conns: map[net.Conn]struct{}{}}
	var web net.Listener
	err := m.InNetwork(func() (err error) {
		if web, err = net.Listen("tcp", fmt.Sprintf(":%d", HTTPPort)); err != nil {
			return err
		}
		if s.listener, err = net.Listen("tcp", fmt.Sprintf(":%d", EchoPort)); err != nil {
			return err
		}
		s.packets, err = net.ListenPacket("udp4", fmt.Sprintf("0.0.0.0:%d", EchoPort))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("serve %s on %s: %w", name, m.Name, err)
	}
	s.http = &http.Server{Handler: s.routes(), ReadHeaderTimeout: time.Minute}
	s.tasks.Go(func() { _ = s.http.Serve(web) })
	s.tasks.Go(s.acceptEcho)
	s.tasks.Go(s.echoPackets)
	return s, nil
}

// Close ends the server and every connection.
func (s *Server) Close() error {
	err := errors.Join(s.http.Close(), s.listener.Close(), s.packets.Close())
	s.mu.Lock()
	for c := range s.conns {
		_ = c.Close()
	}
	s.mu.Unlock()
	s.tasks.Wait()
	return err
}

// Seen lists the sources of all connections, requests and datagrams so far.
func (s *Server) Seen() []netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]netip.AddrPort(nil), s.seen...)
}

func (s *Server) meet(remote net.Addr) Answer {
	client := netip.MustParseAddrPort(remote.String())
	client = netip.AddrPortFrom(client.Addr().Unmap(), client.Port())
	s.mu.Lock()
	s.seen = append(s.seen, client)
	s.mu.Unlock()
	return Answer{Server: s.name, Client: client}
}

// routes serves the Answer at /, n bytes at /bytes?n= and more slowly at /slowly,
// and counts a body that
// is sent to /count.
func (s *Server) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(s.meetString(r.RemoteAddr))
	})
	mux.HandleFunc("GET /bytes", func(w http.ResponseWriter, r *http.Request) {
		n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
		_, _ = io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("GET /slowly", s.slowly)
	mux.HandleFunc("POST /count", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		_, _ = fmt.Fprintln(w, n)
	})
	return mux
}

// slowly serves n bytes in chunks, one every so often: GET /slowly?n=&chunk=&every=.
func (s *Server) slowly(w http.ResponseWriter, r *http.Request) {
	n, err := strconv.ParseInt(r.URL.Query().Get("n"), 10, 64)
	chunk, failed := strconv.ParseInt(r.URL.Query().Get("chunk"), 10, 64)
	every, wrong := time.ParseDuration(r.URL.Query().Get("every"))
	if err := errors.Join(err, failed, wrong); err != nil || every <= 0 || chunk <= 0 {
		http.Error(w, fmt.Sprint(err), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Length", strconv.FormatInt(n, 10))
	t := time.NewTicker(every)
	defer t.Stop()
	for left := n; left > 0; left -= chunk {
		if _, err := io.CopyN(w, zeros{}, min(chunk, left)); err != nil {
			return
		}
		_ = http.NewResponseController(w).Flush()
		select {
		case <-r.Context().Done():
			return
		case <-t.C:
		}
	}
}

func (s *Server) meetString(remote string) Answer {
	return s.meet(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(remote)))
}

func (s *Server) acceptEcho() {
	for {
		c, err := s.listener.Accept()
		if err != nil {
			return
		}
		s.mu.Lock()
		s.conns[c] = struct{}{}
		s.mu.Unlock()
		s.tasks.Go(func() { s.echo(c) })
	}
}

func (s *Server) echo(c net.Conn) {
	defer func() {
		_ = c.Close()
		s.mu.Lock()
		delete(s.conns, c)
		s.mu.Unlock()
	}()
	if err := json.NewEncoder(c).Encode(s.meet(c.RemoteAddr())); err != nil {
		return
	}
	_, _ = io.Copy(c, c)
}

func (s *Server) echoPackets() {
	buffer := make([]byte, 1<<16)
	for {
		n, from, err := s.packets.ReadFrom(buffer)
		if err != nil {
			return
		}
		s.meet(from)
		_, _ = s.packets.WriteTo(buffer[:n], from)
	}
}

// zeros is an endless source of zeros.
type zeros struct{}

func (zeros) Read(b []byte) (int, error) {
	clear(b)
	return len(b), nil
}

// Get asks a server at an address who it is, by HTTP from a machine.
func Get(ctx context.Context, m *topo.Machine, server netip.Addr) (Answer, error) {
	var answer Answer
	err := fetch(ctx, m, http.MethodGet, server, "/", nil, func(body io.Reader) error {
		return json.NewDecoder(body).Decode(&answer)
	})
	return answer, err
}

// Download fetches n bytes by HTTP from a machine.
func Download(ctx context.Context, m *topo.Machine, server netip.Addr, n int64) error {
	return fetch(ctx, m, http.MethodGet, server, fmt.Sprintf("/bytes?n=%d", n), nil, func(body io.Reader) error {
		got, err := io.Copy(io.Discard, body)
		if err == nil && got != n {
			err = fmt.Errorf("got %d of %d bytes", got, n)
		}
		return err
	})
}

// slowChunk bytes come slowEvery in a slow download: 1.6 MB/s.
const (
	slowChunk = 16 << 10
	slowEvery = 10 * time.Millisecond
)

// DownloadSlowly fetches n bytes by HTTP from a machine, as fast as a user's line
// might be, and returns the longest time in which nothing came.
func DownloadSlowly(ctx context.Context, m *topo.Machine, server netip.Addr, n int64) (longest time.Duration, err error) {
	path := fmt.Sprintf("/slowly?n=%d&chunk=%d&every=%v", n, slowChunk, slowEvery)
	err = fetch(ctx, m, http.MethodGet, server, path, nil, func(body io.Reader) error {
		buffer := make([]byte, slowChunk)
		heard := time.Now()
		for got := int64(0); ; {
			k, err := body.Read(buffer)
			got += int64(k)
			longest, heard = max(longest, time.Since(heard)), time.Now()
			switch {
			case errors.Is(err, io.EOF) && got == n:
				return nil
			case err != nil:
				return fmt.Errorf("after %d of %d bytes: %w", got, n, err)
			}
		}
	})
	return longest, err
}

// Upload sends n bytes by HTTP from a machine.
func Upload(ctx context.Context, m *topo.Machine, server netip.Addr, n int64) error {
	return fetch(ctx, m, http.MethodPost, server, "/count", io.LimitReader(zeros{}, n), func(body io.Reader) error {
		var got int64
		if _, err := fmt.Fscan(body, &got); err != nil {
			return err
		}
		if got != n {
			return fmt.Errorf("the server got %d of %d bytes", got, n)
		}
		return nil
	})
}

func fetch(ctx context.Context, m *topo.Machine, method string, server netip.Addr, path string, body io.Reader, read func(io.Reader) error) error {
	url := "http://" + netip.AddrPortFrom(server, HTTPPort).String() + path
	request, err := http.NewRequestWithContext(ctx, method, url, body)
	if err != nil {
		return err
	}
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			return Dial(ctx, m, network, address)
		},
	}}
	response, err := client.Do(request)
	if err != nil {
		return fmt.Errorf("%s: %w", m.Name, err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return fmt.Errorf("%s: %s %s: %s", m.Name, method, url, response.Status)
	}
	if err := read(response.Body); err != nil {
		return fmt.Errorf("%s: %s %s: %w", m.Name, method, url, err)
	}
	return nil
}

// Dial connects from a machine; address is a literal, as nothing resolves
// names there.
func Dial(ctx context.Context, m *topo.Machine, network, address string) (net.Conn, error) {
	var c net.Conn
	err := m.InNetwork(func() (err error) {
		c, err = new(net.Dialer).DialContext(ctx, network, address)
		return err
	})
	return c, err
}
