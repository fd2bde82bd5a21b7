package natlog

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"
)

// sampleRecords are the beginning and the end of a connection, as lines.
func sampleRecords(t testing.TB) (who string, first, last []byte) {
	r := Record{Time: time.Unix(1700000000, 0).UTC(), Event: Start, Attachment: "orders", Protocol: "tcp",
		Source: port("10.244.1.5:40000"), To: port("172.16.101.5:5432"), Translated: port("172.16.101.100:61000")}
	first, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	r.Event, r.OutBytes = End, 12
	if last, err = json.Marshal(r); err != nil {
		t.Fatal(err)
	}
	return r.Source.String(), first, last
}

func scanned(t testing.TB, path, who string, content []byte) []*Record {
	t.Helper()
	if err := os.WriteFile(path, content, 0o600); err != nil {
		t.Fatal(err)
	}
	var got []*Record
	if err := scan(t.Context(), path, port(who), func(r *Record) {
		found := *r
		got = append(got, &found)
	}); err != nil {
		t.Fatal(err)
	}
	return got
}

func TestDamageHidesNoOtherRecord(t *testing.T) {
	who, first, last := sampleRecords(t)
	for _, n := range []int{1, maxLine - 1, maxLine, maxLine + 1, 1 << 20} {
		damage := make([]byte, n)
		got := scanned(t, filepath.Join(t.TempDir(), "part"), who, slices.Concat(first, []byte("\n"), damage, []byte("\n"), last, []byte("\n"), damage))
		if len(got) != 2 || got[0].Event != Start || got[1].Event != End {
			t.Errorf("%d zeros in the middle: %d records", n, len(got))
		}
	}
}

// FuzzScan puts what a crash may have left between two records: both are found, and
// nothing is that is not of the address.
func FuzzScan(f *testing.F) {
	who, first, last := sampleRecords(f)
	f.Add([]byte{})
	f.Add(first[:len(first)/2])
	f.Add(slices.Concat(last, first))
	f.Add(bytes.Replace(first, []byte("10.244.1.5:40000"), []byte("10.244.1.5:4"), 1))
	path := filepath.Join(f.TempDir(), "part")
	f.Fuzz(func(t *testing.T, damage []byte) {
		got := scanned(t, path, who, slices.Concat(first, []byte("\n"), damage, []byte("\n"), last, []byte("\n")))
		if len(got) < 2 || got[0].Event != Start || got[len(got)-1].Event != End {
			t.Fatalf("%d records are left", len(got))
		}
		for _, r := range got {
			if r.Source.String() != who && r.Translated.String() != who {
				t.Errorf("%+v is not of %s", r, who)
			}
		}
	})
}
