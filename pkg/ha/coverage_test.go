package ha

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// TestEveryRuleIsTested compares docs/rfc9568.md with the tests under pkg/ha:
// every rule there has a test of each polarity, which the table names, and every
// rule that a test names is in the table. What only a real kernel shows is in a
// section of its own, with tests that must exist.
func TestEveryRuleIsTested(t *testing.T) {
	holding, refusing := rulesInTests(t)
	doc, err := os.ReadFile("../../docs/rfc9568.md")
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile(`^\| (RFC9568-\S+) \|.*\| ([^|]+) \| ([^|]+) \|$`)
	body, open, _ := strings.Cut(string(doc), "## Shown on real sockets and kernels")
	documented := map[string]bool{}
	for _, line := range strings.Split(body, "\n") {
		f := row.FindStringSubmatch(line)
		if f == nil {
			if strings.HasPrefix(line, "| RFC9568") {
				t.Errorf("unreadable row: %s", line)
			}
			continue
		}
		if documented[f[1]] {
			t.Errorf("%s is there twice", f[1])
		}
		documented[f[1]] = true
		compare(t, f[1], "holds", f[2], holding[f[1]])
		compare(t, f[1], "refuses", f[3], refusing[f[1]])
	}
	if len(documented) < 25 {
		t.Errorf("only %d rules found", len(documented))
	}
	for _, found := range []map[string][]string{holding, refusing} {
		for id, tests := range found {
			if !documented[id] {
				t.Errorf("%v test %s, which docs/rfc9568.md does not list as kept", tests, id)
			}
			if strings.Contains(open, "| "+id+" |") {
				t.Errorf("%s has tests of the machine: move it up", id)
			}
		}
	}
}

// TestScenariosOfRulesExist looks for the tests that the section about real
// kernels names.
func TestScenariosOfRulesExist(t *testing.T) {
	doc, err := os.ReadFile("../../docs/rfc9568.md")
	if err != nil {
		t.Fatal(err)
	}
	_, open, _ := strings.Cut(string(doc), "## Shown on real sockets and kernels")
	section, _, _ := strings.Cut(open, "\n## ")
	var sources strings.Builder
	for _, dir := range []string{".", "vip", "../../test/netns"} {
		files, err := filepath.Glob(filepath.Join(dir, "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			b, err := os.ReadFile(f)
			if err != nil {
				t.Fatal(err)
			}
			sources.Write(b)
		}
	}
	names := regexp.MustCompile("`(Test[A-Za-z0-9]+)`").FindAllStringSubmatch(section, -1)
	if len(names) < 4 {
		t.Errorf("only %d tests are named", len(names))
	}
	for _, n := range names {
		if !strings.Contains(sources.String(), "func "+n[1]+"(") {
			t.Errorf("there is no test %s", n[1])
		}
	}
}

func compare(t *testing.T, id, polarity, cell string, tests []string) {
	t.Helper()
	slices.Sort(tests)
	tests = slices.Compact(tests)
	if len(tests) == 0 {
		t.Errorf("no test %s %s", polarity, id)
	}
	if want := strings.Join(tests, ", "); want != cell {
		t.Errorf("%s, %s: the table says %q, the tests are %q", id, polarity, cell, want)
	}
}

// rulesInTests finds the calls holds(t, id) and refuses(t, id).
func rulesInTests(t *testing.T) (holding, refusing map[string][]string) {
	t.Helper()
	holding, refusing = map[string][]string{}, map[string][]string{}
	into := map[string]map[string][]string{"holds": holding, "refuses": refusing}
	err := filepath.WalkDir(".", func(path string, _ fs.DirEntry, err error) error {
		if err != nil || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		file, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		for _, d := range file.Decls {
			f, ok := d.(*ast.FuncDecl)
			if !ok || !strings.HasPrefix(f.Name.Name, "Test") {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				call, ok := n.(*ast.CallExpr)
				if !ok || len(call.Args) != 2 {
					return true
				}
				name, ok := call.Fun.(*ast.Ident)
				if !ok || into[name.Name] == nil {
					return true
				}
				lit, ok := call.Args[1].(*ast.BasicLit)
				if !ok {
					t.Errorf("%s: %s: name the rule literally", path, f.Name.Name)
					return true
				}
				id, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Error(err)
				}
				into[name.Name][id] = append(into[name.Name][id], f.Name.Name)
				return true
			})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return holding, refusing
}
