package store

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
)

const (
	// opTimeout bounds one read or write. An election takes about a second.
	opTimeout = 5 * time.Second
	// dialTimeout bounds the first connection.
	dialTimeout = 5 * time.Second
	// A member that a silent network keeps from answering is noticed after
	// keepaliveTime+keepaliveTimeout: 15 s.
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// page is how many keys Load asks for at once: etcd limits an answer
	// to the size of a gRPC message.
	page = 1000
	// maxAnswer is of one page, and of the events of one watch response.
	maxAnswer = 64 << 20
)

// External says where an external etcd cluster is.
type External struct {
	Endpoints []string // https://HOST:2379
	// TLS files; all empty for plaintext.
	CAFile, CertFile, KeyFile string
	// Prefix defaults to DefaultPrefix.
	Prefix string
}

// Dial connects to an external cluster. It does not wait for an answer: a
// cluster that is away is an error of the first operation.
func Dial(e External, log *slog.Logger) (*Etcd, error) {
	if len(e.Endpoints) == 0 {
		return nil, errors.New("no etcd endpoint is given; want https://HOST:2379")
	}
	cfg := clientv3.Config{
		Endpoints:            e.Endpoints,
		DialTimeout:          dialTimeout,
		DialKeepAliveTime:    keepaliveTime,
		DialKeepAliveTimeout: keepaliveTimeout,
		MaxCallRecvMsgSize:   maxAnswer,
		Logger:               zap.New(newCore(log)),
	}
	if e.CAFile != "" || e.CertFile != "" || e.KeyFile != "" {
		// The files are read again at each handshake.
		info := transport.TLSInfo{TrustedCAFile: e.CAFile, CertFile: e.CertFile, KeyFile: e.KeyFile}
		tls, err := info.ClientConfig()
		if err != nil {
			return nil, fmt.Errorf("etcd's TLS files: %w", err)
		}
		cfg.TLS = tls
	}
	c, err := clientv3.New(cfg)
	if err != nil {
		return nil, fmt.Errorf("etcd at %s: %w", strings.Join(e.Endpoints, ","), err)
	}
	prefix := e.Prefix
	if prefix == "" {
		prefix = DefaultPrefix
	}
	return &Etcd{client: c, prefix: prefix, name: "etcd at " + strings.Join(e.Endpoints, ",")}, nil
}

// Etcd is a Store in etcd.
type Etcd struct {
	client *clientv3.Client
	prefix string
	name   string
	stop   func() // of the embedded server; nil if there is none
}

var _ Store = (*Etcd)(nil)

// String implements Store.
func (s *Etcd) String() string { return s.name }

// Close implements Store.
func (s *Etcd) Close() error {
	err := s.client.Close()
	if s.stop != nil {
		s.stop()
	}
	if err != nil && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("close %s: %w", s.name, err)
	}
	return nil
}

// Load implements Store.
func (s *Etcd) Load(ctx context.Context) ([]Entry, int64, error) {
	var entries []Entry
	var revision int64
	from := s.prefix
	for {
		opts := []clientv3.OpOption{
			clientv3.WithRange(clientv3.GetPrefixRangeEnd(s.prefix)),
			clientv3.WithLimit(page),
		}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision)) // the same state on every page
		}
		answer, err := s.get(ctx, from, opts)
		if err != nil {
			return nil, 0, fmt.Errorf("read %s: %w", s.name, compacted(err))
		}
		if revision == 0 {
			revision = answer.Header.Revision
		}
		for _, kv := range answer.Kvs {
			entries = append(entries, Entry{
				Key:      strings.TrimPrefix(string(kv.Key), s.prefix),
				Value:    kv.Value,
				Revision: kv.ModRevision,
			})
		}
		if !answer.More || len(answer.Kvs) == 0 {
			return entries, revision, nil
		}
		from = string(answer.Kvs[len(answer.Kvs)-1].Key) + "\x00"
	}
}

func (s *Etcd) get(ctx context.Context, from string, opts []clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	return s.client.Get(ctx, from, opts...)
}

// Txn implements Store.
func (s *Etcd) Txn(ctx context.Context, conditions []Compare, changes []Op) (int64, error) {
	if len(changes) > MaxOps || len(conditions) > MaxOps {
		return 0, fmt.Errorf("%d keys: %w", max(len(changes), len(conditions)), ErrTooLarge)
	}
	cmps := make([]clientv3.Cmp, len(conditions))
	for i, c := range conditions {
		// The ModRevision of a key that is absent is 0.
		cmps[i] = clientv3.Compare(clientv3.ModRevision(s.prefix+c.Key), "=", c.Revision)
	}
	ops := make([]clientv3.Op, len(changes))
	for i, c := range changes {
		if c.Delete {
			ops[i] = clientv3.OpDelete(s.prefix + c.Key)
		} else {
			ops[i] = clientv3.OpPut(s.prefix+c.Key, string(c.Value))
		}
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	answer, err := s.client.Txn(ctx).If(cmps...).Then(ops...).Commit()
	if err != nil {
		return 0, fmt.Errorf("write %s: %w", s.name, err)
	}
	if !answer.Succeeded {
		return 0, ErrConflict
	}
	return answer.Header.Revision, nil
}

// Watch implements Store.
func (s *Etcd) Watch(ctx context.Context, from int64, f func([]Event) error) error {
	// A watch of its own ends with the function, whatever its reason. A
	// member without a leader would be silent: it shall fail instead.
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for r := range s.client.Watch(ctx, s.prefix, clientv3.WithPrefix(), clientv3.WithRev(from)) {
		if err := r.Err(); err != nil {
			return fmt.Errorf("watch %s: %w", s.name, compacted(err))
		}
		events := make([]Event, 0, len(r.Events))
		for _, e := range r.Events {
			events = append(events, Event{
				Entry: Entry{
					Key:      strings.TrimPrefix(string(e.Kv.Key), s.prefix),
					Value:    e.Kv.Value,
					Revision: e.Kv.ModRevision,
				},
				Deleted: e.Type == clientv3.EventTypeDelete,
			})
		}
		if len(events) == 0 {
			continue
		}
		if err := f(events); err != nil {
			return err
		}
	}
	if err := context.Cause(ctx); err != nil {
		return fmt.Errorf("watch %s: %w", s.name, err)
	}
	return fmt.Errorf("watch %s: ended", s.name)
}

// compacted makes etcd's error ours.
func compacted(err error) error {
	if errors.Is(err, rpctypes.ErrCompacted) {
		return fmt.Errorf("%w: %w", ErrCompacted, err)
	}
	return err
}
