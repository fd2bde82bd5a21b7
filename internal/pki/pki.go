// Package pki is the platform's own certificate authority and what is made of
// its certificates: bundles for nodes, operators and controllers, and TLS 1.3
// configurations that follow the files when they are renewed.
//
// The CA's key stays where the operator ran `vpcproxyctl pki init`; no machine
// of the platform needs it.
package pki

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"time"
)

// The files of a bundle, and the key that only the CA's directory has.
const (
	CAFile    = "ca.crt"
	CertFile  = "tls.crt"
	KeyFile   = "tls.key"
	CAKeyFile = "ca.key"
)

// OperatorName is the bundle that Init issues for the CLI.
const OperatorName = "operator"

const (
	caValidity   = 10 * 365 * 24 * time.Hour
	leafValidity = 365 * 24 * time.Hour
	// backdate lets certificates be used at once by machines whose clocks
	// are a little behind.
	backdate = 5 * time.Minute
)

// ErrExists is returned instead of overwriting a file.
var ErrExists = errors.New("exists already; --force replaces it")

// Options say how certificates are made. The zero value is good.
type Options struct {
	// Validity defaults to 10 years for a CA and 1 year for the rest.
	Validity time.Duration
	// Force replaces what exists.
	Force bool
	// Hosts are the DNS names and IP addresses at which a controller is
	// reached; the bundle's name is always one of them.
	Hosts []string
	// Now defaults to time.Now.
	Now func() time.Time
}

func (o Options) now() time.Time {
	if o.Now != nil {
		return o.Now()
	}
	return time.Now()
}

// Init makes a CA in dir, and a bundle for an operator in dir/operator. It
// returns the directory of that bundle. Unless o.Force is set, ErrExists is
// returned if dir has a CA already; with it, all certificates issued before are
// void.
func Init(dir string, o Options) (string, error) {
	if !o.Force {
		for _, f := range []string{CAFile, CAKeyFile} {
			if err := absent(filepath.Join(dir, f)); err != nil {
				return "", err
			}
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", fmt.Errorf("make the CA's directory: %w", err)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make the CA's key: %w", err)
	}
	template := template(o, "vpcproxy CA", caValidity)
	template.IsCA, template.BasicConstraintsValid, template.MaxPathLenZero = true, true, true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageCRLSign
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return "", fmt.Errorf("sign the CA's certificate: %w", err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return "", err
	}
	if err := errors.Join(
		writeFile(filepath.Join(dir, CAKeyFile), keyPEM),
		writeFile(filepath.Join(dir, CAFile), encodeCertificate(der)),
	); err != nil {
		return "", err
	}
	return Issue(dir, OperatorName, []Role{RoleOperator}, o.forLeaf())
}

// forLeaf keeps what concerns both: a CA's validity is not a leaf's.
func (o Options) forLeaf() Options { return Options{Force: o.Force, Now: o.Now} }

// Issue signs a certificate for name in the given roles with the CA in dir. The
// bundle, all that its owner needs, is the directory dir/name, which is
// returned. Unless o.Force is set, ErrExists is returned if it is there.
func Issue(dir, name string, roles []Role, o Options) (string, error) {
	if err := checkRequest(name, roles, o); err != nil {
		return "", err
	}
	bundle := filepath.Join(dir, name)
	if !o.Force {
		if err := absent(bundle); err != nil {
			return "", err
		}
	}
	caPEM, ca, caKey, err := loadCA(dir)
	if err != nil {
		return "", err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return "", fmt.Errorf("make a key for %s: %w", name, err)
	}
	template := leaf(name, roles, o)
	if template.NotAfter.After(ca.NotAfter) {
		template.NotAfter = ca.NotAfter
	}
	if !template.NotBefore.Before(template.NotAfter) {
		return "", fmt.Errorf("the CA in %s expired on %s; make a new one with `vpcproxyctl pki init --force`", dir, ca.NotAfter.Format(time.DateOnly))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), caKey)
	if err != nil {
		return "", fmt.Errorf("sign the certificate of %s: %w", name, err)
	}
	keyPEM, err := encodeKey(key)
	if err != nil {
		return "", err
	}
	return bundle, writeBundle(bundle, map[string][]byte{CAFile: caPEM, CertFile: encodeCertificate(der), KeyFile: keyPEM})
}

// dnsLabel is RFC 1123 section 2.1 as Kubernetes reads it. It also keeps a
// name from leaving the CA's directory.
var dnsLabel = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`)

func checkRequest(name string, roles []Role, o Options) error {
	if !dnsLabel.MatchString(name) {
		return fmt.Errorf("%q is not a DNS label: at most 63 characters of a-z, 0-9 and -, not at the ends", name)
	}
	if len(roles) == 0 {
		return fmt.Errorf("certificate of %s: no role is given", name)
	}
	for _, r := range roles {
		if !slices.Contains(allRoles, r) {
			return fmt.Errorf("certificate of %s: role %q is not known; want node, operator or controller", name, r)
		}
	}
	if name == OperatorName && !slices.Equal(roles, []Role{RoleOperator}) {
		return fmt.Errorf("the name %q is kept for the operator's bundle; choose another", name)
	}
	if len(o.Hosts) > 0 && !slices.Contains(roles, RoleController) {
		return fmt.Errorf("certificate of %s: names and addresses are for controllers only", name)
	}
	for _, h := range o.Hosts {
		if _, err := netip.ParseAddr(h); err != nil && !dnsName.MatchString(h) {
			return fmt.Errorf("certificate of %s: %q is neither a DNS name nor an IP address", name, h)
		}
	}
	return nil
}

var dnsName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$`)

func template(o Options, name string, validity time.Duration) *x509.Certificate {
	if o.Validity > 0 {
		validity = o.Validity
	}
	now := o.now()
	return &x509.Certificate{
		SerialNumber: serial(),
		Subject:      pkix.Name{CommonName: name},
		NotBefore:    now.Add(-backdate),
		NotAfter:     now.Add(validity),
	}
}

// serial is random, so that the CA needs no memory of what it issued. 20 octets
// is the most that RFC 5280 section 4.1.2.2 allows; 16 is plenty.
func serial() *big.Int {
	b := make([]byte, 16)
	// crypto/rand.Read never fails (Go 1.24).
	_, _ = rand.Read(b)
	b[0] &= 0x7f // positive
	b[15] |= 1   // not zero
	return new(big.Int).SetBytes(b)
}

func leaf(name string, roles []Role, o Options) *x509.Certificate {
	t := template(o, name, leafValidity)
	t.KeyUsage = x509.KeyUsageDigitalSignature
	t.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}
	for _, r := range roles {
		t.URIs = append(t.URIs, &url.URL{Scheme: uriScheme, Host: string(r), Path: "/" + name})
	}
	if !slices.Contains(roles, RoleController) {
		return t
	}
	t.ExtKeyUsage = append(t.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
	t.DNSNames = []string{name}
	for _, h := range o.Hosts {
		if ip := net.ParseIP(h); ip != nil {
			t.IPAddresses = append(t.IPAddresses, ip)
		} else if !slices.Contains(t.DNSNames, h) {
			t.DNSNames = append(t.DNSNames, h)
		}
	}
	return t
}

func loadCA(dir string) (caPEM []byte, ca *x509.Certificate, key *ecdsa.PrivateKey, err error) {
	caPEM, err = os.ReadFile(filepath.Join(dir, CAFile))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil, fmt.Errorf("no CA in %s; make one with `vpcproxyctl pki init`: %w", dir, err)
	}
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the CA's certificate: %w", err)
	}
	block, _ := pem.Decode(caPEM)
	if block == nil {
		return nil, nil, nil, fmt.Errorf("%s holds no PEM block", filepath.Join(dir, CAFile))
	}
	if ca, err = x509.ParseCertificate(block.Bytes); err != nil {
		return nil, nil, nil, fmt.Errorf("parse %s: %w", filepath.Join(dir, CAFile), err)
	}
	keyPEM, err := os.ReadFile(filepath.Join(dir, CAKeyFile))
	if err != nil {
		return nil, nil, nil, fmt.Errorf("read the CA's key: %w", err)
	}
	if block, _ = pem.Decode(keyPEM); block == nil {
		return nil, nil, nil, fmt.Errorf("%s holds no PEM block", filepath.Join(dir, CAKeyFile))
	}
	parsed, err := x509.ParsePKCS8PrivateKey(block.Bytes)
	if err != nil {
		return nil, nil, nil, fmt.Errorf("parse %s: %w", filepath.Join(dir, CAKeyFile), err)
	}
	key, ok := parsed.(*ecdsa.PrivateKey)
	if !ok || !key.PublicKey.Equal(ca.PublicKey) {
		return nil, nil, nil, fmt.Errorf("%s is not the key of %s", filepath.Join(dir, CAKeyFile), filepath.Join(dir, CAFile))
	}
	return caPEM, ca, key, nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

func encodeKey(k *ecdsa.PrivateKey) ([]byte, error) {
	der, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		return nil, fmt.Errorf("encode a key: %w", err)
	}
	return pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}
