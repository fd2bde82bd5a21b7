package pki

import (
	"crypto/x509"
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Role is what the owner of a certificate may act as.
type Role string

// The roles.
const (
	RoleNode       Role = "node"
	RoleOperator   Role = "operator"
	RoleController Role = "controller"
)

var allRoles = []Role{RoleNode, RoleOperator, RoleController}

// uriScheme is of the certificates' URI names: vpcproxy://node/NAME.
const uriScheme = "vpcproxy"

// Identity is who a certificate speaks for.
type Identity struct {
	Name  string
	Roles []Role
}

// Has tells whether the identity includes a role.
func (i Identity) Has(r Role) bool { return slices.Contains(i.Roles, r) }

// String is for logs: operator/alice.
func (i Identity) String() string {
	roles := make([]string, len(i.Roles))
	for n, r := range i.Roles {
		roles[n] = string(r)
	}
	return strings.Join(roles, "+") + "/" + i.Name
}

// ErrNoIdentity is returned for a certificate without a name of ours.
var ErrNoIdentity = errors.New("certificate has no vpcproxy:// name; issue it with `vpcproxyctl pki issue`")

// IdentityOf reads the identity in a certificate that has been verified. Every
// vpcproxy:// name of it must be of the same owner.
func IdentityOf(c *x509.Certificate) (Identity, error) {
	var id Identity
	for _, u := range c.URIs {
		if u.Scheme != uriScheme {
			continue
		}
		name := strings.TrimPrefix(u.Path, "/")
		role := Role(u.Host)
		if !slices.Contains(allRoles, role) || !dnsLabel.MatchString(name) {
			return Identity{}, fmt.Errorf("certificate name %s is malformed", u)
		}
		if id.Name != "" && id.Name != name {
			return Identity{}, fmt.Errorf("certificate is for both %s and %s", id.Name, name)
		}
		id.Name = name
		id.Roles = append(id.Roles, role)
	}
	if id.Name == "" {
		return Identity{}, ErrNoIdentity
	}
	return id, nil
}

func (i Identity) mustBeNode(name string) error {
	if i.Name != name || !i.Has(RoleNode) {
		return fmt.Errorf("the other side is %s, not %s/%s", i, RoleNode, name)
	}
	return nil
}
