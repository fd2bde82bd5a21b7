package deploy

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

const root = "../.."

// pages are the documents by path below the root.
func pages(t *testing.T) map[string]string {
	t.Helper()
	all := map[string]string{}
	read := func(path string) {
		b, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			t.Fatal(err)
		}
		all[path] = string(b)
	}
	read("README.md")
	read("README.zh.md")
	err := filepath.WalkDir(filepath.Join(root, "docs"), func(path string, d fs.DirEntry, err error) error {
		if err == nil && filepath.Ext(path) == ".md" {
			relative, _ := filepath.Rel(root, path)
			read(relative)
		}
		return err
	})
	if err != nil || len(all) < 50 {
		t.Fatalf("%d pages: %v", len(all), err)
	}
	return all
}

var (
	link     = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading  = regexp.MustCompile(`(?m)^#+ +(.*)$`)
	unsaid   = regexp.MustCompile(`[^\p{L}\p{N}_ -]`)
	listings = regexp.MustCompile("(?ms)^```.*?^```")
)

// anchors are what a page's headings are called in links, as GitHub does.
func anchors(text string) []string {
	var out []string
	for _, h := range heading.FindAllStringSubmatch(listings.ReplaceAllString(text, ""), -1) {
		out = append(out, strings.ReplaceAll(unsaid.ReplaceAllString(strings.ToLower(strings.TrimSpace(h[1])), ""), " ", "-"))
	}
	return out
}

// TestLinksResolve follows every link between documents, to the heading.
func TestLinksResolve(t *testing.T) {
	all := pages(t)
	followed := 0
	for page, text := range all {
		for _, m := range link.FindAllStringSubmatch(listings.ReplaceAllString(text, ""), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			followed++
			path, anchor, _ := strings.Cut(m[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: %s leads nowhere", page, m[1])
			} else if anchor != "" && !slices.Contains(anchors(all[target]), anchor) {
				t.Errorf("%s: %s has no heading %q, but %q", page, target, anchor, anchors(all[target]))
			}
		}
	}
	if followed < 100 {
		t.Errorf("only %d links were found", followed)
	}
}

var (
	command = regexp.MustCompile("`vpcproxyctl ([a-z-]+)(?: ([a-z-]+))?")
	target  = regexp.MustCompile("`(?:sudo )?make ([a-z-]+)")
	known   = regexp.MustCompile(`(?m)^##+ vpcproxyctl ([a-z-]+)(?: ([a-z-]+))?$`)
)

// TestCommandsExist looks every command up that the documents name: of vpcproxyctl in
// its reference, of make in the Makefile.
func TestCommandsExist(t *testing.T) {
	all := pages(t)
	commands := map[string]bool{}
	groups := map[string]bool{} // those that need a second word
	for _, m := range known.FindAllStringSubmatch(all["docs/cli.md"], -1) {
		commands[m[1]] = true
		if m[2] != "" {
			commands[m[1]+" "+m[2]] = true
			groups[m[1]] = true
		}
	}
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	named := 0
	for page, text := range all {
		for _, m := range command.FindAllStringSubmatch(text, -1) {
			named++
			if !commands[m[1]] || groups[m[1]] && m[2] != "" && !commands[m[1]+" "+m[2]] {
				t.Errorf("%s: there is no %s`", page, m[0])
			}
		}
		for _, m := range target.FindAllStringSubmatch(text, -1) {
			named++
			if !strings.Contains(string(makefile), "\n.PHONY: "+m[1]+"\n") {
				t.Errorf("%s: there is no %s`", page, m[0])
			}
		}
	}
	if named < 100 {
		t.Errorf("only %d commands were found", named)
	}
}

// TestReadmesShowTheSame compares what the two READMEs have typed.
func TestReadmesShowTheSame(t *testing.T) {
	all := pages(t)
	typed := func(page string) []string {
		var out []string
		for line := range strings.Lines(all[page]) {
			if strings.HasPrefix(line, "# vpcproxyctl ") || strings.HasPrefix(line, "sudo make ") {
				line, _, _ = strings.Cut(line[1:], "#")
				out = append(out, strings.TrimSpace(line))
			}
		}
		return out
	}
	if en, zh := typed("README.md"), typed("README.zh.md"); !slices.Equal(en, zh) || len(en) < 6 {
		t.Errorf("README.md has\n%q, README.zh.md\n%q", en, zh)
	}
}
