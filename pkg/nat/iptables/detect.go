package iptables

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	goiptables "github.com/coreos/go-iptables/iptables"

	"github.com/vpcproxy/vpcproxy/pkg/nat"
)

// Mode selects the variant of iptables.
type Mode string

// The modes. Auto takes the variant that kubelet has marked as its own
// (KUBE-IPTABLES-HINT or KUBE-KUBELET-CANARY in its mangle table), otherwise the
// one that holds more rules of others, otherwise the one that the program
// "iptables" is.
const (
	Auto   Mode = "auto"
	NFT    Mode = "nft"
	Legacy Mode = "legacy"
)

// programs are one family's programs, as paths.
type programs struct{ save, restore string }

// variant is one installed variant of iptables.
type variant struct {
	mode     Mode
	programs map[nat.Family]programs
}

// dump reads all tables that exist; it must not ask for one by name, because
// legacy tables come into being when they are asked for, and every packet passes
// them from then on.
func (v *variant) dump(ctx context.Context, f nat.Family, counters bool) ([]table, error) {
	if v.mode == Legacy {
		names, err := legacyTables(f)
		if err != nil || len(names) == 0 {
			return nil, err
		}
	}
	return v.programs[f].dump(ctx, counters)
}

// detect returns the variant to use and the other one, if it is installed.
func detect(ctx context.Context, mode Mode) (variant, *variant, error) {
	if !slices.Contains([]Mode{Auto, NFT, Legacy}, mode) {
		return variant{}, nil, fmt.Errorf("iptables mode %q: use %s, %s or %s", mode, Auto, NFT, Legacy)
	}
	std, stdErr := standardMode(ctx)
	nft, nftErr := locate(NFT, std)
	legacy, legacyErr := locate(Legacy, std)
	var installed []*variant
	for _, v := range []*variant{nft, legacy} {
		if v != nil {
			installed = append(installed, v)
		}
	}
	if len(installed) == 0 {
		return variant{}, nil, fmt.Errorf("install iptables 1.6.2 or later: %w", errors.Join(stdErr, nftErr, legacyErr))
	}
	if mode == Auto {
		mode = choose(survey(ctx, installed), std)
	}
	var use, other *variant
	for _, v := range installed {
		if v.mode == mode {
			use = v
		} else {
			other = v
		}
	}
	if use == nil {
		return variant{}, nil, fmt.Errorf("iptables-%s is not installed: %w", mode, errors.Join(nftErr, legacyErr))
	}
	return *use, other, nil
}

// survey reads what each installed variant holds. One that cannot be read (the
// kernel may lack it) holds nothing.
func survey(ctx context.Context, installed []*variant) map[Mode][]table {
	held := map[Mode][]table{}
	for _, v := range installed {
		held[v.mode] = nil
		for _, f := range families {
			if tables, err := v.dump(ctx, f, false); err == nil {
				held[v.mode] = append(held[v.mode], tables...)
			}
		}
	}
	return held
}

// choose decides between installed variants as Auto says. std is "" if there is
// no program "iptables".
func choose(held map[Mode][]table, std Mode) Mode {
	_, nft := held[NFT]
	_, legacy := held[Legacy]
	if !nft || !legacy {
		return map[bool]Mode{true: NFT, false: Legacy}[nft]
	}
	for _, m := range []Mode{NFT, Legacy} {
		if hinted(held[m]) {
			return m
		}
	}
	switch n, l := foreignRules(held[NFT]), foreignRules(held[Legacy]); {
	case n > l:
		return NFT
	case l > n:
		return Legacy
	}
	return cmp.Or(std, NFT)
}

// hinted looks for kubelet's marks (KEP-3178).
func hinted(tables []table) bool {
	return slices.ContainsFunc(tables, func(t table) bool {
		return t.name == "mangle" && (t.has("KUBE-IPTABLES-HINT") || t.has("KUBE-KUBELET-CANARY"))
	})
}

// foreignRules counts the rules that are not ours.
func foreignRules(tables []table) int {
	n := 0
	for _, t := range tables {
		for c, rules := range t.rules {
			for _, r := range rules {
				if !ours(c) && !ours(target(nat.Words(r.spec))) {
					n++
				}
			}
		}
	}
	return n
}

// standardMode returns the variant that the program "iptables" is.
func standardMode(ctx context.Context) (Mode, error) {
	path, err := lookPath("iptables")
	if err != nil {
		return "", err
	}
	out, err := run(ctx, "", path, "--version")
	if err != nil {
		return "", err
	}
	// "iptables v1.8.9 (nf_tables)"; before 1.8 there was only legacy.
	if strings.Contains(string(out), "nf_tables") {
		return NFT, nil
	}
	return Legacy, nil
}

// locate finds a variant's programs: iptables-nft-save and so on, or
// iptables-save if "iptables" is of that variant.
func locate(mode, std Mode) (*variant, error) {
	v := &variant{mode: mode, programs: map[nat.Family]programs{}}
	for f, name := range map[nat.Family]string{nat.IPv4: "iptables", nat.IPv6: "ip6tables"} {
		p, err := locateFamily(f, name+"-"+string(mode))
		if err != nil && mode == std {
			p, err = locateFamily(f, name)
		}
		if err != nil {
			return nil, err
		}
		v.programs[f] = p
	}
	return v, nil
}

func locateFamily(f nat.Family, name string) (programs, error) {
	var p programs
	path, err := lookPath(name)
	if err != nil {
		return p, err
	}
	proto := goiptables.ProtocolIPv4
	if f == nat.IPv6 {
		proto = goiptables.ProtocolIPv6
	}
	t, err := goiptables.New(goiptables.Path(path), goiptables.IPFamily(proto))
	if err != nil {
		return p, err
	}
	if !t.HasRandomFully() {
		return p, fmt.Errorf("%s is older than 1.6.2 and cannot choose ports fully at random", path)
	}
	if p.save, err = lookPath(name + "-save"); err != nil {
		return p, err
	}
	p.restore, err = lookPath(name + "-restore")
	return p, err
}

// lookPath is exec.LookPath that also knows where iptables is on hosts whose
// PATH leaves out the administrator's folders.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		path := filepath.Join(dir, name)
		if info, statErr := os.Stat(path); statErr == nil && info.Mode().IsRegular() && info.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", err
}
