package diagnose

import (
	"fmt"
	"strings"
)

var (
	codeHaVip = Code{"havip-mismatch", Error, "a HaVip is not where it is elected to",
		"Election, kernel and what answers on the link do not agree on who holds an address: packets to it go to a proxy that does not serve, or to two.",
		"`vpcproxyctl ha status` shows what each proxy believes. Look for a second holder (`ip neigh show ADDRESS` on a neighbor), for a program that adds or removes the address, and whether the cloud has the HaVip bound to both instances."}
	codeNoElection = Code{"no-election", Error, "a group elects nobody here",
		"This proxy takes no part in the election of a group that it is a member of, so it will not take over.",
		"The evidence says what is missing, such as the link with the underlay address."}
	codeNoActive = Code{"no-active", Error, "no proxy of a group is active",
		"Nobody answers for the group's addresses: its attachments are not served.",
		"Look at the other members: `vpcproxyctl ha status`. If all are in Fault, the tracks that are down say why."}
	codeTrack = Code{"unfit", Warning, "something keeps this proxy from being active",
		"A thing that the election watches is down, such as an ENI or the underlay: this proxy does not take over, or hands over.",
		"Mend what is named; the proxy becomes fit by itself."}
	groupCodes = []Code{codeHaVip, codeNoElection, codeNoActive, codeTrack}
)

func (f *findings) groups(e *Evidence) {
	status := []string{"vpcproxyctl ha status"}
	for _, g := range e.Groups {
		if g.Problem != "" {
			f.add(codeNoElection, "", fmt.Sprintf("no election in group %s", g.Name), []string{g.Problem}, status)
			continue
		}
		if len(g.Discrepancies) > 0 {
			f.add(codeHaVip, "", fmt.Sprintf("HaVips of group %s are not where they are elected to (this node is %s)", g.Name, g.State), g.Discrepancies, status)
		}
		if len(g.Down) > 0 {
			f.add(codeTrack, "", fmt.Sprintf("this node is not fit for group %s: %s", g.Name, strings.Join(g.Down, ", ")), g.Down, status)
		}
		if g.Active == "" && g.State != "Active" {
			f.add(codeNoActive, "", fmt.Sprintf("no proxy of group %s is active, as far as this node (%s) hears", g.Name, g.State), nil, status)
		}
	}
}
