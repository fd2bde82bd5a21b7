// Package diagnose says what is wrong and what mends it. It is pure: evidence that
// others have gathered goes in, findings come out. Each finding has a code, and each
// code a page in docs/diagnose.
package diagnose

import (
	"cmp"
	"fmt"
	"slices"
)

// Severity says how bad a finding is.
type Severity string

// The severities.
const (
	Error   Severity = "error"   // something does not work
	Warning Severity = "warning" // something will not work, or may not
	Info    Severity = "info"    // good to know when looking for a cause
)

var severityOrder = map[Severity]int{Error: 0, Warning: 1, Info: 2}

// Finding is one thing that is wrong on one node.
type Finding struct {
	Code       string   `json:"code"`
	Severity   Severity `json:"severity"`
	Node       string   `json:"node"`
	Attachment string   `json:"attachment,omitempty"` // "" if it concerns the node
	Summary    string   `json:"summary"`
	Evidence   []string `json:"evidence"` // as observed
	Fix        []string `json:"fix"`      // commands, or what to do
	Page       string   `json:"page"`     // below docs/
}

// findings collects what checks find on one node.
type findings struct {
	node string
	list []Finding
}

// add notes a finding, whose severity and page are the code's.
func (f *findings) add(c Code, attachment, summary string, evidence, fix []string) {
	f.list = append(f.list, Finding{
		Code: c.Name, Severity: c.Severity, Node: f.node, Attachment: attachment,
		Summary: summary, Evidence: orEmpty(evidence), Fix: orEmpty(fix), Page: c.Page(),
	})
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

// sorted returns the findings, worst first, each once.
func (f *findings) sorted() []Finding {
	slices.SortStableFunc(f.list, func(a, b Finding) int {
		return cmp.Or(cmp.Compare(severityOrder[a.Severity], severityOrder[b.Severity]),
			cmp.Compare(a.Attachment, b.Attachment), cmp.Compare(a.Code, b.Code))
	})
	return slices.CompactFunc(f.list, func(a, b Finding) bool {
		return a.Code == b.Code && a.Attachment == b.Attachment && a.Summary == b.Summary
	})
}

// Worst is the severity of the worst finding; "" if there is none.
func Worst(list []Finding) Severity {
	worst := Severity("")
	for _, f := range list {
		if worst == "" || severityOrder[f.Severity] < severityOrder[worst] {
			worst = f.Severity
		}
	}
	return worst
}

func lines(format string, args ...any) []string { return []string{fmt.Sprintf(format, args...)} }
