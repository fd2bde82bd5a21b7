package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"
)

// recheck is how often files are looked at, at most, for having changed: a
// stat of three files, on a handshake, is cheap but not free.
const recheck = time.Second

// Credentials are a bundle's files in use. They are read again at a handshake
// when they have changed, so that renewal needs no restart. Safe for concurrent
// use.
type Credentials struct {
	dir string
	log *slog.Logger
	now func() time.Time

	mu      sync.Mutex
	current material
	seen    [3]fingerprint
	checked time.Time
	failed  bool
}

type material struct {
	cert tls.Certificate
	pool *x509.CertPool
}

// fingerprint tells a file's versions apart.
type fingerprint struct {
	size     int64
	modified time.Time
}

// Load reads a bundle. The error says which file is missing or wrong, or that
// the certificate has expired.
func Load(dir string, log *slog.Logger) (*Credentials, error) {
	c := &Credentials{dir: dir, log: log, now: time.Now}
	c.checked = c.now()
	c.seen = c.fingerprints() // first: a change while reading is seen later
	var err error
	if c.current, err = read(dir, c.checked); err != nil {
		return nil, err
	}
	return c, nil
}

// Identity returns whom the certificate in use is for.
func (c *Credentials) Identity() (Identity, error) { return IdentityOf(c.material().cert.Leaf) }

// Expires returns when the certificate in use does.
func (c *Credentials) Expires() time.Time { return c.material().cert.Leaf.NotAfter }

func read(dir string, now time.Time) (material, error) {
	caPEM, err := os.ReadFile(filepath.Join(dir, CAFile))
	if err != nil {
		return material{}, fmt.Errorf("certificate bundle %s: %w", dir, err)
	}
	m := material{pool: x509.NewCertPool()}
	if !m.pool.AppendCertsFromPEM(caPEM) {
		return material{}, fmt.Errorf("certificate bundle %s: %s holds no certificate", dir, CAFile)
	}
	m.cert, err = tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		return material{}, fmt.Errorf("certificate bundle %s: %w", dir, err)
	}
	if now.After(m.cert.Leaf.NotAfter) {
		return material{}, fmt.Errorf("certificate bundle %s: expired on %s; renew it with `vpcproxyctl pki issue --force`",
			dir, m.cert.Leaf.NotAfter.Format(time.DateOnly))
	}
	if _, err := IdentityOf(m.cert.Leaf); err != nil {
		return material{}, fmt.Errorf("certificate bundle %s: %w", dir, err)
	}
	return m, nil
}

func (c *Credentials) fingerprints() (f [3]fingerprint) {
	for i, name := range []string{CAFile, CertFile, KeyFile} {
		if st, err := os.Stat(filepath.Join(c.dir, name)); err == nil {
			f[i] = fingerprint{st.Size(), st.ModTime()}
		}
	}
	return f
}

// material returns what is in use. Files that cannot be used leave it as it
// is: a renewal may be half done.
func (c *Credentials) material() material {
	c.mu.Lock()
	defer c.mu.Unlock()
	now := c.now()
	if now.Sub(c.checked) < recheck {
		return c.current
	}
	c.checked = now
	seen := c.fingerprints()
	if seen == c.seen {
		return c.current
	}
	m, err := read(c.dir, now)
	if err != nil {
		if !c.failed {
			c.log.Warn("certificates changed and cannot be used; the old ones stay in use", "dir", c.dir, "err", err)
		}
		c.failed = true
		return c.current
	}
	c.current, c.seen, c.failed = m, seen, false
	c.log.Info("certificates taken over", "dir", c.dir, "expires", m.cert.Leaf.NotAfter)
	return m
}

// ServerConfig is for a listener: TLS 1.3, and clients must show a certificate
// of the same CA that has an identity.
func (c *Credentials) ServerConfig() *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		NextProtos: nextProtos,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			m := c.material()
			return &tls.Config{
				MinVersion:   tls.VersionTLS13,
				NextProtos:   nextProtos,
				Certificates: []tls.Certificate{m.cert},
				ClientAuth:   tls.RequireAndVerifyClientCert,
				ClientCAs:    m.pool,
				// A resumed session would outlive a CA that was
				// replaced.
				SessionTicketsDisabled: true,
				VerifyConnection: func(s tls.ConnectionState) error {
					_, err := peerIdentity(s)
					return err
				},
			}, nil
		},
	}
}

var nextProtos = []string{"h2", "http/1.1"}

// ClientConfig is for one connection to a server by that name or address: it
// must be a controller of the same CA. Make a new one for each connection.
func (c *Credentials) ClientConfig(serverName string) *tls.Config {
	m := c.material()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		NextProtos:   nextProtos[:1],
		ServerName:   serverName,
		RootCAs:      m.pool,
		Certificates: []tls.Certificate{m.cert},
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := peerIdentity(s)
			if err == nil && !id.Has(RoleController) {
				err = fmt.Errorf("server is %s, not a controller", id)
			}
			return err
		},
	}
}

// MemberConfig is for one connection to the node of that name, wherever it is: its
// certificate must be of the same CA and speak for that node. Make a new one for
// each connection.
func (c *Credentials) MemberConfig(node string) *tls.Config {
	m := c.material()
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{m.cert},
		// The name is not one of the DNS: VerifyConnection checks the chain
		// and the identity instead.
		InsecureSkipVerify: true, //nolint:gosec // see above
		VerifyConnection: func(s tls.ConnectionState) error {
			id, err := peerIdentity(s)
			if err != nil {
				return err
			}
			intermediates := x509.NewCertPool()
			for _, cert := range s.PeerCertificates[1:] {
				intermediates.AddCert(cert)
			}
			_, err = s.PeerCertificates[0].Verify(x509.VerifyOptions{
				Roots: m.pool, Intermediates: intermediates,
				// Nodes have certificates to say who they are, not to
				// be servers by a name; members say so to each other.
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
			})
			if err == nil {
				err = id.mustBeNode(node)
			}
			return err
		},
	}
}

// MemberName returns the name of the node at the other end of a connection that
// a listener with ServerConfig has accepted.
func MemberName(s tls.ConnectionState) (string, error) {
	id, err := peerIdentity(s)
	if err == nil && !id.Has(RoleNode) {
		err = fmt.Errorf("client is %s, not a node", id)
	}
	return id.Name, err
}

func peerIdentity(s tls.ConnectionState) (Identity, error) {
	if len(s.PeerCertificates) == 0 {
		return Identity{}, errors.New("peer showed no certificate")
	}
	return IdentityOf(s.PeerCertificates[0])
}
