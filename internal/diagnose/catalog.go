package diagnose

import (
	"fmt"
	"slices"
	"strings"
)

// Code is a sort of finding. Its name stays what it is: scripts and runbooks
// refer to it.
type Code struct {
	Name     string
	Severity Severity
	Title    string
	Means    string // what it is, and what follows for traffic
	Mend     string // what to do about it
}

// Page is the code's page below docs/.
func (c Code) Page() string { return "diagnose/" + c.Name + ".md" }

// Markdown is the code's page.
func (c Code) Markdown() string {
	return fmt.Sprintf("# %s\n\n%s (%s)\n\n## What it means\n\n%s\n\n## What mends it\n\n%s\n", c.Name, c.Title, c.Severity, c.Means, c.Mend)
}

// Codes lists every code by name.
func Codes() []Code {
	all := slices.Concat(agentCodes, objectCodes(), kernelCodes, firewallCodes, machineCodes, underlayCodes, tunnelCodes, eniCodes, groupCodes, traceCodes)
	slices.SortFunc(all, func(a, b Code) int { return strings.Compare(a.Name, b.Name) })
	return all
}

// Index is the page that lists the others.
func Index() string {
	var b strings.Builder
	b.WriteString("# Findings of `vpcproxyctl trace` and `vpcproxyctl doctor`\n\nThese pages are made by `go test ./internal/diagnose -update`.\n\n| code | severity | |\n|---|---|---|\n")
	for _, c := range Codes() {
		fmt.Fprintf(&b, "| [%s](%s.md) | %s | %s |\n", c.Name, c.Name, c.Severity, c.Title)
	}
	return b.String()
}
