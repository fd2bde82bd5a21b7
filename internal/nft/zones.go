package nft

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

const (
	setZones        = "zones"
	chainZonePrefix = "zone_"
)

// ValidateZone returns why what comes from a link cannot be put in a conntrack
// zone, or nil.
func ValidateZone(link string, zone uint16) error {
	switch {
	case link == "" || len(link) >= unix.IFNAMSIZ:
		return fmt.Errorf("zone %d of link %q: not an interface name", zone, link)
	case zone == 0:
		return fmt.Errorf("zone of link %s: is 0, the common zone", link)
	}
	return nil
}

// zoneRules put what comes from a link in the link's zone.
func zoneRules(links bool) []rule {
	if !links {
		return nil
	}
	return []rule{{
		&expr.Meta{Key: expr.MetaKeyIIFNAME, Register: 1},
		&expr.Lookup{SourceRegister: 1, SetName: setZones, IsDestRegSet: true},
	}}
}

// setZone is nothing for the common zone.
func setZone(zone uint16) rule {
	if zone == 0 {
		return nil
	}
	return rule{
		&expr.Immediate{Register: 1, Data: binaryutil.NativeEndian.PutUint16(zone)},
		&expr.Ct{Key: expr.CtKeyZONE, Register: 1, SourceRegister: true},
	}
}

func zoneChain(zone uint16) string { return fmt.Sprintf(chainZonePrefix+"%04x", zone) }

func parseZoneChain(name string) (uint16, bool) {
	rest, ok := strings.CutPrefix(name, chainZonePrefix)
	zone, err := strconv.ParseUint(rest, 16, 16)
	return uint16(zone), ok && err == nil && zone != 0 && zoneChain(uint16(zone)) == name
}

// linkKey is an interface name as the kernel compares it.
func linkKey(link string) string {
	return link + string(make([]byte, unix.IFNAMSIZ-len(link)))
}

func decodeZone(key []byte, chain string) (link string, zone uint16, err error) {
	name, _, _ := bytes.Cut(key, []byte{0})
	zone, ok := parseZoneChain(chain)
	if len(key) != unix.IFNAMSIZ || len(name) == 0 || linkKey(string(name)) != string(key) || !ok {
		return "", 0, errors.New("map zones has an element that is not of a link with a zone")
	}
	return string(name), zone, nil
}
