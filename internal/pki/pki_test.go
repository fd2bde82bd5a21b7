package pki

import (
	"crypto/ecdsa"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var quiet = slog.New(slog.DiscardHandler)

// newCA makes a CA and returns its directory.
func newCA(t *testing.T) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "pki")
	if _, err := Init(dir, Options{}); err != nil {
		t.Fatal(err)
	}
	return dir
}

func issue(t *testing.T, ca, name string, role Role, o Options) string {
	t.Helper()
	dir, err := Issue(ca, name, []Role{role}, o)
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

func load(t *testing.T, dir string) *Credentials {
	t.Helper()
	c, err := Load(dir, quiet)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func TestFiles(t *testing.T) {
	ca := newCA(t)
	issue(t, ca, "worker-1", RoleNode, Options{})
	want := map[string]os.FileMode{
		".": 0o700, "ca.crt": 0o600, "ca.key": 0o600,
		"operator": 0o700, "operator/ca.crt": 0o600, "operator/tls.crt": 0o600, "operator/tls.key": 0o600,
		"worker-1": 0o700, "worker-1/ca.crt": 0o600, "worker-1/tls.crt": 0o600, "worker-1/tls.key": 0o600,
	}
	err := filepath.WalkDir(ca, func(path string, d os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(ca, path)
		if err != nil {
			return err
		}
		st, err := d.Info()
		if err != nil {
			return err
		}
		if mode, ok := want[rel]; !ok || st.Mode().Perm() != mode {
			t.Errorf("%s has mode %v; want %v", rel, st.Mode().Perm(), mode)
		}
		delete(want, rel)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for rel := range want {
		t.Errorf("%s is missing", rel)
	}
}

func TestCertificates(t *testing.T) {
	ca := newCA(t)
	day := 24 * time.Hour
	for name, c := range map[string]struct {
		bundle string
		uri    string
		dns    []string
		ips    int
		server bool
	}{
		"operator":   {filepath.Join(ca, OperatorName), "vpcproxy://operator/operator", nil, 0, false},
		"node":       {issue(t, ca, "worker-1", RoleNode, Options{}), "vpcproxy://node/worker-1", nil, 0, false},
		"controller": {issue(t, ca, "ctl", RoleController, Options{Hosts: []string{"ctl.example", "10.0.0.1", "2001:db8::1"}}), "vpcproxy://controller/ctl", []string{"ctl", "ctl.example"}, 2, true},
	} {
		t.Run(name, func(t *testing.T) {
			leaf := load(t, c.bundle).material().cert.Leaf
			if len(leaf.URIs) != 1 || leaf.URIs[0].String() != c.uri {
				t.Errorf("URIs %v; want %s", leaf.URIs, c.uri)
			}
			if !slices.Equal(leaf.DNSNames, c.dns) || len(leaf.IPAddresses) != c.ips {
				t.Errorf("names %v, addresses %v; want %v and %d", leaf.DNSNames, leaf.IPAddresses, c.dns, c.ips)
			}
			if got := slices.Contains(leaf.ExtKeyUsage, x509.ExtKeyUsageServerAuth); got != c.server {
				t.Errorf("serverAuth is %v; want %v", got, c.server)
			}
			if left := time.Until(leaf.NotAfter); left < 364*day || left > 366*day {
				t.Errorf("valid for %v; want a year", left)
			}
			if k, ok := leaf.PublicKey.(*ecdsa.PublicKey); !ok || k.Curve.Params().Name != "P-256" || leaf.IsCA {
				t.Errorf("key %T, CA %v; want a P-256 leaf", leaf.PublicKey, leaf.IsCA)
			}
		})
	}
	_, cert, _, err := loadCA(ca)
	if err != nil {
		t.Fatal(err)
	}
	if left := time.Until(cert.NotAfter); left < 3649*day || !cert.IsCA {
		t.Errorf("CA is valid for %v, CA %v; want ten years", left, cert.IsCA)
	}
}

func TestNothingIsOverwritten(t *testing.T) {
	ca := newCA(t)
	worker := issue(t, ca, "worker-1", RoleNode, Options{})
	before := contents(t, ca)
	if _, err := Init(ca, Options{}); !errors.Is(err, ErrExists) {
		t.Errorf("Init again: %v; want ErrExists", err)
	}
	if _, err := Issue(ca, "worker-1", []Role{RoleNode}, Options{}); !errors.Is(err, ErrExists) {
		t.Errorf("Issue again: %v; want ErrExists", err)
	}
	if after := contents(t, ca); after != before {
		t.Error("a refused command changed files")
	}
	if _, err := Issue(ca, "worker-1", []Role{RoleNode}, Options{Force: true}); err != nil {
		t.Fatal(err)
	}
	if after := contents(t, worker); strings.Contains(before, after) {
		t.Error("--force left the bundle as it was")
	}
	load(t, worker)
	if _, err := Init(ca, Options{Force: true}); err != nil {
		t.Fatal(err)
	}
	load(t, filepath.Join(ca, OperatorName))
}

// contents joins all files below a directory.
func contents(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		b.Write(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestBadRequests(t *testing.T) {
	ca := newCA(t)
	for name, c := range map[string]struct {
		dir, name string
		roles     []Role
		o         Options
		want      string
	}{
		"path":           {ca, "../evil", []Role{RoleNode}, Options{}, "is not a DNS label"},
		"no name":        {ca, "", []Role{RoleNode}, Options{}, "is not a DNS label"},
		"no role":        {ca, "x", nil, Options{}, "no role is given"},
		"unknown role":   {ca, "x", []Role{"root"}, Options{}, `role "root" is not known`},
		"reserved name":  {ca, "operator", []Role{RoleNode}, Options{Force: true}, "is kept for the operator"},
		"host of a node": {ca, "x", []Role{RoleNode}, Options{Hosts: []string{"x.example"}}, "for controllers only"},
		"bad host":       {ca, "x", []Role{RoleController}, Options{Hosts: []string{"*.example"}}, "neither a DNS name nor an IP address"},
		"no CA":          {t.TempDir(), "x", []Role{RoleNode}, Options{}, "make one with `vpcproxyctl pki init`"},
		"CA has expired": {ca, "x", []Role{RoleNode}, Options{Now: func() time.Time { return time.Now().AddDate(11, 0, 0) }}, "expired on"},
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := Issue(c.dir, c.name, c.roles, c.o); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
	// A key that is not the CA's is noticed before anything is signed.
	key, err := os.ReadFile(filepath.Join(newCA(t), CAKeyFile))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ca, CAKeyFile), key, 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Issue(ca, "x", []Role{RoleNode}, Options{}); err == nil || !strings.Contains(err.Error(), "is not the key of") {
		t.Errorf("error %v; want one about the key", err)
	}
}

func TestIdentityOf(t *testing.T) {
	for name, c := range map[string]struct {
		uris []string
		want string // "" is an error
	}{
		"node":           {[]string{"vpcproxy://node/worker-1"}, "node/worker-1"},
		"two roles":      {[]string{"vpcproxy://node/a", "vpcproxy://controller/a"}, "node+controller/a"},
		"others' names":  {[]string{"spiffe://x/y", "vpcproxy://node/a"}, "node/a"},
		"two owners":     {[]string{"vpcproxy://node/a", "vpcproxy://node/b"}, ""},
		"unknown role":   {[]string{"vpcproxy://root/a"}, ""},
		"path":           {[]string{"vpcproxy://node/a/b"}, ""},
		"empty":          {[]string{"vpcproxy://node/"}, ""},
		"none":           {nil, ""},
		"only of others": {[]string{"spiffe://x/y"}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			cert := &x509.Certificate{}
			for _, s := range c.uris {
				u, err := url.Parse(s)
				if err != nil {
					t.Fatal(err)
				}
				cert.URIs = append(cert.URIs, u)
			}
			id, err := IdentityOf(cert)
			if (err == nil) != (c.want != "") || err == nil && id.String() != c.want {
				t.Errorf("IdentityOf = %v, %v; want %q", id, err, c.want)
			}
		})
	}
}

// dial has a client talk to a server, and returns what each of them makes of
// it.
func dial(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	result := make(chan error, 1)
	go func() {
		c, err := l.Accept()
		if err != nil {
			result <- err
			return
		}
		defer func() { _ = c.Close() }()
		s := tls.Server(c, server)
		if err := s.Handshake(); err != nil {
			result <- err
			return
		}
		_, err = s.Write([]byte("x"))
		result <- err
	}()
	c, err := tls.Dial("tcp", l.Addr().String(), client)
	if err == nil {
		// In TLS 1.3 a client learns by reading that it is not wanted.
		_, err = io.ReadFull(c, make([]byte, 1))
		_ = c.Close()
	}
	return <-result, err
}

func TestHandshake(t *testing.T) {
	ca, other := newCA(t), newCA(t)
	here := Options{Hosts: []string{"127.0.0.1"}}
	past := func(o Options) Options {
		o.Now, o.Validity = func() time.Time { return time.Now().Add(-48 * time.Hour) }, 24*time.Hour
		return o
	}
	server := issue(t, ca, "ctl", RoleController, here)
	node := issue(t, ca, "worker-1", RoleNode, Options{})
	for name, c := range map[string]struct {
		server, client string
		name           string // of the server, as the client wants it
		want           string // part of either side's error; "" is none
	}{
		"good":                   {server, node, "127.0.0.1", ""},
		"by name":                {server, node, "ctl", ""},
		"client of another CA":   {server, issue(t, other, "worker-1", RoleNode, Options{}), "127.0.0.1", "unknown authority"},
		"server of another CA":   {issue(t, other, "ctl", RoleController, here), node, "127.0.0.1", "unknown authority"},
		"server's other name":    {server, node, "ctl.example", "valid for ctl, not ctl.example"},
		"server's other address": {server, node, "127.0.0.2", "valid for 127.0.0.1, not 127.0.0.2"},
		"node as server":         {node, node, "worker-1", "x509"},
		"expired client":         {server, issue(t, ca, "old", RoleNode, past(Options{})), "127.0.0.1", "expired"},
		"expired server":         {issue(t, ca, "oldctl", RoleController, past(here)), node, "127.0.0.1", "expired"},
	} {
		t.Run(name, func(t *testing.T) {
			// A bundle that has expired since it was loaded.
			loadThen := func(dir string) *Credentials {
				m, err := read(dir, time.Now().Add(-47*time.Hour))
				if err != nil {
					t.Fatal(err)
				}
				return &Credentials{dir: dir, log: quiet, now: time.Now, current: m, checked: time.Now().Add(time.Hour)}
			}
			serverErr, clientErr := dial(t, loadThen(c.server).ServerConfig(), loadThen(c.client).ClientConfig(c.name))
			err := errors.Join(serverErr, clientErr)
			if (err == nil) != (c.want == "") || err != nil && !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
	t.Run("no client certificate", func(t *testing.T) {
		conf := load(t, node).ClientConfig("127.0.0.1")
		conf.Certificates = nil
		if err, _ := dial(t, load(t, server).ServerConfig(), conf); err == nil {
			t.Error("the server talks to a client without a certificate")
		}
	})
	t.Run("TLS 1.2", func(t *testing.T) {
		conf := load(t, node).ClientConfig("127.0.0.1")
		conf.MinVersion, conf.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
		if err, _ := dial(t, load(t, server).ServerConfig(), conf); err == nil {
			t.Error("the server speaks TLS 1.2")
		}
	})
	t.Run("certificate of the CA without an identity", func(t *testing.T) {
		dir := issue(t, ca, "plain", RoleNode, Options{})
		resign(t, ca, dir)
		m, err := read(dir, time.Now())
		if !errors.Is(err, ErrNoIdentity) {
			t.Errorf("read = %v, %v; want ErrNoIdentity", m, err)
		}
		cert, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
		if err != nil {
			t.Fatal(err)
		}
		conf := load(t, node).ClientConfig("127.0.0.1")
		conf.Certificates = []tls.Certificate{cert}
		if err, _ := dial(t, load(t, server).ServerConfig(), conf); !errors.Is(err, ErrNoIdentity) {
			t.Errorf("the server says %v; want ErrNoIdentity", err)
		}
	})
	t.Run("operator as server", func(t *testing.T) {
		err := load(t, node).ClientConfig("x").VerifyConnection(tls.ConnectionState{
			PeerCertificates: []*x509.Certificate{load(t, filepath.Join(ca, OperatorName)).material().cert.Leaf},
		})
		if err == nil || !strings.Contains(err.Error(), "operator/operator, not a controller") {
			t.Errorf("error %v; want one about the role", err)
		}
	})
}

// resign replaces a bundle's certificate by one without names.
func resign(t *testing.T, ca, dir string) {
	t.Helper()
	_, cert, key, err := loadCA(ca)
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(filepath.Join(dir, CertFile), filepath.Join(dir, KeyFile))
	if err != nil {
		t.Fatal(err)
	}
	leaf := *pair.Leaf
	leaf.URIs = nil
	der, err := x509.CreateCertificate(nil, &leaf, cert, leaf.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, CertFile), encodeCertificate(der), 0o600); err != nil {
		t.Fatal(err)
	}
}

// Renewed files, even of a new CA, are used without a restart; half of a
// renewal is not.
func TestRotation(t *testing.T) {
	ca := newCA(t)
	here := Options{Hosts: []string{"127.0.0.1"}, Force: true}
	var log strings.Builder
	now := time.Now()
	open := func(dir string) *Credentials {
		c, err := Load(dir, slog.New(slog.NewTextHandler(&log, nil)))
		if err != nil {
			t.Fatal(err)
		}
		c.now = func() time.Time { return now }
		return c
	}
	server, client := open(issue(t, ca, "ctl", RoleController, here)), open(issue(t, ca, "worker-1", RoleNode, here.withoutHosts()))
	conf := server.ServerConfig()
	talk := func() error {
		now = now.Add(2 * recheck)
		return errors.Join(dial(t, conf, client.ClientConfig("127.0.0.1")))
	}
	if err := talk(); err != nil {
		t.Fatal(err)
	}
	serial := server.material().cert.Leaf.SerialNumber

	// A torn renewal: another key.
	keyFile := filepath.Join(server.dir, KeyFile)
	good, err := os.ReadFile(keyFile)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(keyFile, []byte("torn"), 0o600); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := talk(); err != nil {
			t.Errorf("with a torn key file: %v", err)
		}
	}
	if n := strings.Count(log.String(), "the old ones stay in use"); n != 1 {
		t.Errorf("%d warnings; want one", n)
	}
	if err := os.WriteFile(keyFile, good, 0o600); err != nil {
		t.Fatal(err)
	}

	if _, err := Init(ca, Options{Force: true}); err != nil {
		t.Fatal(err)
	}
	issue(t, ca, "ctl", RoleController, here)
	if err := talk(); err == nil {
		t.Error("a client of the old CA is still served")
	}
	issue(t, ca, "worker-1", RoleNode, here.withoutHosts())
	if err := talk(); err != nil {
		t.Errorf("after both were renewed: %v", err)
	}
	if server.material().cert.Leaf.SerialNumber.Cmp(serial) == 0 {
		t.Error("the server shows its old certificate")
	}
	if id, err := server.Identity(); err != nil || fmt.Sprint(id) != "controller/ctl" || server.Expires().Before(now) {
		t.Errorf("identity %v, %v, until %v", id, err, server.Expires())
	}
}

func (o Options) withoutHosts() Options { o.Hosts = nil; return o }

func TestLoadFails(t *testing.T) {
	ca := newCA(t)
	for name, c := range map[string]struct {
		spoil func(dir string) error
		want  string
	}{
		"no directory": {os.RemoveAll, "no such file"},
		"no key":       {func(dir string) error { return os.Remove(filepath.Join(dir, KeyFile)) }, "tls.key"},
		"no PEM in CA": {func(dir string) error { return os.WriteFile(filepath.Join(dir, CAFile), []byte("x"), 0o600) }, "ca.crt holds no certificate"},
		"expired": {func(dir string) error {
			_, err := Issue(ca, filepath.Base(dir), []Role{RoleNode}, Options{Force: true, Validity: time.Hour, Now: func() time.Time { return time.Now().Add(-2 * time.Hour) }})
			return err
		}, "renew it with"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := issue(t, ca, strings.ReplaceAll(strings.ToLower(name), " ", "-"), RoleNode, Options{})
			if err := c.spoil(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := Load(dir, quiet); err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("error %v; want %q", err, c.want)
			}
		})
	}
}
