package binding

import (
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func sample(pod string, attachments ...string) *intent.Binding {
	b := &intent.Binding{Pod: netip.MustParseAddr(pod), Interface: "veth1", Owner: "sandbox-1", Bound: time.Unix(1700000000, 5).UTC()}
	for _, a := range attachments {
		b.Attachments = append(b.Attachments, intent.BoundAttachment{Name: a, CIDRs: []netip.Prefix{netip.MustParsePrefix("172.16.101.0/24")}})
	}
	return b
}

func put(t *testing.T, s *Store, list ...*intent.Binding) {
	t.Helper()
	for _, b := range list {
		if err := s.Put(b); err != nil {
			t.Fatal(err)
		}
	}
}

func load(t *testing.T, s *Store) ([]*intent.Binding, []error) {
	t.Helper()
	list, problems, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return list, problems
}

func TestBindingsOutliveTheStore(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bindings")
	s := open(t, dir)
	put(t, s, sample("fd00::5", "red"), sample("10.244.1.9", "red"), sample("10.244.1.5", "red"), sample("10.244.1.5", "blue", "red"))
	if err := s.Delete(netip.MustParseAddr("10.244.1.9")); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(netip.MustParseAddr("10.244.1.9")); err != nil {
		t.Errorf("the second time: %v", err)
	}
	got, problems := load(t, open(t, dir))
	want := []*intent.Binding{sample("10.244.1.5", "blue", "red"), sample("fd00::5", "red")}
	if !reflect.DeepEqual(got, want) || len(problems) != 0 {
		t.Errorf("loaded %+v, %v", got, problems)
	}
	if info, err := os.Stat(filepath.Join(dir, "10.244.1.5.json")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}

func TestBindingsOfAnotherBootAreGone(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	s.boot = "an earlier one"
	put(t, s, sample("10.244.1.5", "red"))
	if err := os.WriteFile(filepath.Join(dir, "10.244.1.6.json.new"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	got, problems := load(t, open(t, dir))
	left, err := os.ReadDir(dir)
	if len(got)+len(problems)+len(left) != 0 || err != nil {
		t.Errorf("loaded %+v, %v; left %v, %v", got, problems, left, err)
	}
}

func TestDamagedBindingIsKnownAllTheSame(t *testing.T) {
	whole := func(t *testing.T) string {
		dir := t.TempDir()
		put(t, open(t, dir), sample("10.244.1.5", "red"))
		text, err := os.ReadFile(filepath.Join(dir, "10.244.1.5.json"))
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}(t)
	for name, text := range map[string]string{
		"empty":          "",
		"torn":           whole[:len(whole)/2],
		"unknown field":  strings.Replace(whole, `{"version"`, `{"color":1,"version"`, 1),
		"later version":  strings.Replace(whole, `"version":1`, `"version":2`, 1),
		"another pod's":  strings.Replace(whole, "10.244.1.5", "10.244.1.6", 1),
		"no attachments": strings.Replace(whole, `[{"name":"red","cidrs":["172.16.101.0/24"]}]`, "[]", 1),
		"no name":        strings.Replace(whole, `"red"`, `""`, 1),
		"host bits":      strings.Replace(whole, "101.0/24", "101.5/24", 1),
		"two records":    whole + whole,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s := open(t, dir)
			put(t, s, sample("10.244.1.4", "blue"))
			if text == whole {
				t.Fatal("the text is not damaged")
			}
			if err := os.WriteFile(filepath.Join(dir, "10.244.1.5.json"), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			got, problems := load(t, s)
			want := []*intent.Binding{sample("10.244.1.4", "blue"), {Pod: netip.MustParseAddr("10.244.1.5")}}
			if !reflect.DeepEqual(got, want) || len(problems) != 1 || !strings.Contains(problems[0].Error(), "10.244.1.5.json") {
				t.Errorf("loaded %+v, %v", got, problems)
			}
			put(t, s, sample("10.244.1.5", "red")) // bound again
			if got, problems := load(t, s); len(got) != 2 || len(problems) != 0 {
				t.Errorf("bound again: %+v, %v", got, problems)
			}
		})
	}
}

func TestStrangersFilesStay(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"notes.txt", "pod.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	got, problems := load(t, open(t, dir))
	left, err := os.ReadDir(dir)
	if len(got) != 0 || len(problems) != 2 || len(left) != 2 || err != nil {
		t.Errorf("loaded %+v, %v; left %v, %v", got, problems, left, err)
	}
}

// FuzzLoad puts anything into a pod's file: the pod is known all the same, unless
// the file is of another boot, and what is read can be kept and read again.
func FuzzLoad(f *testing.F) {
	dir := f.TempDir()
	s, err := Open(dir)
	if err != nil {
		f.Fatal(err)
	}
	pod := netip.MustParseAddr("10.244.1.5")
	for _, b := range []*intent.Binding{sample("10.244.1.5", "orders"), sample("10.244.1.6", "orders")} {
		text, err := json.Marshal(record{Version: recordVersion, Boot: s.boot, Binding: *b})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(text)
	}
	f.Add([]byte(`{"version":1,"boot":"another"}`))
	f.Add([]byte(`{"version":1,"boOt":""}`))
	f.Add([]byte(`{"version":1}}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		if err := os.WriteFile(s.path(pod), text, 0o600); err != nil {
			t.Fatal(err)
		}
		var of struct{ Boot string }
		another := json.Unmarshal(text, &of) == nil && of.Boot != s.boot
		list, problems := load(t, s)
		switch {
		case len(list) == 0 && len(problems) == 0 && another:
			return
		case len(list) != 1 || list[0].Pod != pod:
			t.Fatalf("%d bindings, problems %v", len(list), problems)
		case (len(list[0].Attachments) == 0) != (len(problems) == 1):
			t.Fatalf("%+v and problems %v", list[0], problems)
		case len(problems) == 1:
			return
		}
		if err := s.Put(list[0]); err != nil {
			t.Fatal(err)
		}
		again, problems := load(t, s)
		if len(problems) > 0 || len(again) != 1 || !reflect.DeepEqual(again[0], list[0]) {
			t.Errorf("kept %+v, read %+v, problems %v", list[0], again, problems)
		}
	})
}
