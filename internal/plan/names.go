package plan

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/binary"
	"math/bits"
	"slices"
	"strings"

	"github.com/vpcproxy/vpcproxy/internal/intent"
)

// idLength leaves room for desired.LinkPrefix in an interface name of at most
// 15 characters (IFNAMSIZ-1, include/uapi/linux/if.h).
const idLength = 11

// ID returns an attachment's short name, for its links and namespace: the name
// itself if it fits, otherwise its beginning and 25 bits of its hash.
func ID(attachment string) string {
	if len(attachment) <= idLength {
		return attachment
	}
	sum := sha256.Sum256([]byte(attachment))
	hash := strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:5])
	return strings.TrimSuffix(attachment[:idLength-6], "-") + "-" + hash
}

// slotCount is how many attachments the mark mask can tell apart: every value
// but zero, which is the mark of an unmarked packet.
func slotCount(mask uint32) uint32 {
	n := bits.OnesCount32(mask)
	if n == 32 {
		return 1<<32 - 1
	}
	return 1<<n - 1
}

// slots gives each attachment a number below count that depends on its name
// alone, unless two names collide: the alphabetically later one then moves to
// the next free number. A restart, and almost every change of the set, leaves
// the numbers as they were. Attachments beyond count get none.
func slots(attachments []*intent.Attachment, count uint32) map[string]uint32 {
	names := make([]string, 0, len(attachments))
	for _, a := range attachments {
		names = append(names, a.ObjectName())
	}
	slices.Sort(names)
	taken := make(map[uint32]bool, len(names))
	out := make(map[string]uint32, len(names))
	for _, name := range names {
		if uint32(len(taken)) >= count {
			break
		}
		sum := sha256.Sum256([]byte(name))
		slot := binary.BigEndian.Uint32(sum[:4]) % count
		for taken[slot] {
			slot = (slot + 1) % count
		}
		taken[slot] = true
		out[name] = slot
	}
	return out
}

// spread puts the bits of v, lowest first, where mask has ones.
func spread(v, mask uint32) uint32 {
	var out uint32
	for bit := uint32(1); mask != 0; bit <<= 1 {
		low := mask & -mask
		if v&bit != 0 {
			out |= low
		}
		mask &^= low
	}
	return out
}
