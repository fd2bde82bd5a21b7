package natlog

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/vpcproxy/vpcproxy/internal/conntrack"
	"github.com/vpcproxy/vpcproxy/internal/meter"
)

// Connection is one that an address and port took part in as a source, before
// or after translation.
type Connection struct {
	Attachment string         `json:"attachment"`
	Protocol   string         `json:"protocol"`
	Source     netip.AddrPort `json:"source"`
	To         netip.AddrPort `json:"to"`
	Translated netip.AddrPort `json:"translated"`
	Started    time.Time      `json:"started,omitzero"` // zero: before the log begins, or not logged
	Ended      time.Time      `json:"ended,omitzero"`   // zero: it lives
	OutBytes   uint64         `json:"outBytes,omitempty"`
	InBytes    uint64         `json:"inBytes,omitempty"`
}

// matches is that of an end with its beginning.
type flowKey struct {
	attachment, protocol   string
	source, to, translated netip.AddrPort
}

func (r *Record) key() flowKey {
	return flowKey{r.Attachment, r.Protocol, r.Source, r.To, r.Translated}
}

func (r *Record) connection() Connection {
	return Connection{Attachment: r.Attachment, Protocol: r.Protocol, Source: r.Source, To: r.To, Translated: r.Translated}
}

// Logged returns the connections of an address and port that lived at a time,
// as the log tells; ended ones have their bytes.
func (l *Log) Logged(ctx context.Context, who netip.AddrPort, at time.Time) ([]Connection, error) {
	paths, err := l.files.paths()
	if err != nil {
		return nil, err
	}
	open := map[flowKey]Connection{}
	var found []Connection
	for _, path := range paths {
		err := scan(ctx, path, who, func(r *Record) {
			switch r.Event {
			case Start:
				c := r.connection()
				c.Started = r.Time
				open[r.key()] = c
			case End:
				c, ok := open[r.key()]
				if !ok {
					c = r.connection()
				}
				delete(open, r.key())
				c.Ended, c.OutBytes, c.InBytes = r.Time, r.OutBytes, r.InBytes
				if !at.Before(c.Started) && !at.After(c.Ended) {
					found = append(found, c)
				}
			}
		})
		// A part that has just been removed held nothing of use.
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	for _, c := range open {
		if !at.Before(c.Started) {
			found = append(found, c)
		}
	}
	slices.SortFunc(found, func(a, b Connection) int {
		return cmp.Or(a.Started.Compare(b.Started), cmp.Compare(a.To.String(), b.To.String()))
	})
	return found, nil
}

// maxLine is far more than a record takes. What is longer is none: after a power
// failure a file may hold any amount of zeros.
const maxLine = 4096

// scan calls f with the records of one part that name an address and port, and
// passes over what is none.
func scan(ctx context.Context, path string, who netip.AddrPort, f func(*Record)) error {
	file, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = file.Close() }()
	needle := []byte(`"` + who.String() + `"`)
	lines := bufio.NewReaderSize(file, maxLine)
	whole := true // line is one from its beginning
	for n := 1; ; n++ {
		if n%4096 == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		line, err := lines.ReadSlice('\n')
		if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, bufio.ErrBufferFull) {
			return fmt.Errorf("%s: %w", path, err)
		}
		var r Record
		if whole && bytes.Contains(line, needle) && json.Unmarshal(line, &r) == nil && (r.Source == who || r.Translated == who) {
			f(&r)
		}
		if errors.Is(err, io.EOF) {
			return nil
		}
		whole = err == nil
	}
}

// Living returns the connections of an address and port that the kernel tracks
// now. It needs no log.
func Living(ctx context.Context, who netip.AddrPort, places []meter.Place, open func(netns string) (meter.Table, error)) ([]Connection, error) {
	var found []Connection
	seen := map[string]bool{}
	for _, p := range places {
		if seen[p.Netns] {
			continue
		}
		seen[p.Netns] = true
		t, err := open(p.Netns)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		owner := meter.Owners(p.Netns, places)
		err = t.Dump(ctx, 0, func(e *conntrack.Entry) {
			if e.Orig.Source() != who && e.Reply.Destination() != who {
				return
			}
			if name, ok := owner.Of(e); ok {
				r := recordOf(name, e)
				c := r.connection()
				c.OutBytes, c.InBytes = e.OrigBytes, e.ReplyBytes
				found = append(found, c)
			}
		})
		if err := errors.Join(err, t.Close()); err != nil {
			return nil, err
		}
	}
	return found, nil
}
