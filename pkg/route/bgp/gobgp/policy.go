package gobgp

import (
	"context"
	"fmt"

	api "github.com/osrg/gobgp/v3/api"
)

// restrict makes the library refuse routes to attachments from those who are
// not to announce any. It must be there before the first peer: a refused route
// that was chosen before would hide a good one from everybody behind us.
func (s *Speaker) restrict(ctx context.Context) error {
	if len(s.opts.Announcers) == 0 {
		return nil
	}
	const announcers, attachments = "announcers", "attachments"
	ranges := make([]string, len(s.opts.Announcers))
	for i, p := range s.opts.Announcers {
		ranges[i] = p.String()
	}
	for _, set := range []*api.DefinedSet{
		{DefinedType: api.DefinedType_NEIGHBOR, Name: announcers, List: ranges},
		{DefinedType: api.DefinedType_EXT_COMMUNITY, Name: attachments, List: []string{`rt:^[0-9]+:[0-9]+$`}},
	} {
		if err := s.server.AddDefinedSet(ctx, &api.AddDefinedSetRequest{DefinedSet: set}); err != nil {
			return fmt.Errorf("import policy: %w", err)
		}
	}
	return s.reject(ctx, api.PolicyDirection_IMPORT, "announcers-only", &api.Conditions{
		NeighborSet:     &api.MatchSet{Type: api.MatchSet_INVERT, Name: announcers},
		ExtCommunitySet: &api.MatchSet{Type: api.MatchSet_ANY, Name: attachments},
	})
}

// confide makes a reflector keep to itself what its neighbors ask for.
func (s *Speaker) confide(ctx context.Context) error {
	if !s.opts.Reflector {
		return nil
	}
	return s.reject(ctx, api.PolicyDirection_EXPORT, "own-targets-only", &api.Conditions{
		AfiSafiIn: []*api.Family{{Afi: api.Family_AFI_IP, Safi: api.Family_SAFI_ROUTE_TARGET_CONSTRAINTS}},
		RouteType: api.Conditions_ROUTE_TYPE_INTERNAL,
	})
}

// reject adds a policy for all neighbors, by which what meets the conditions is
// rejected and the rest accepted.
func (s *Speaker) reject(ctx context.Context, direction api.PolicyDirection, name string, conditions *api.Conditions) error {
	policy := &api.Policy{Name: name, Statements: []*api.Statement{{
		Name: name, Conditions: conditions, Actions: &api.Actions{RouteAction: api.RouteAction_REJECT},
	}}}
	if err := s.server.AddPolicy(ctx, &api.AddPolicyRequest{Policy: policy}); err != nil {
		return fmt.Errorf("policy %s: %w", name, err)
	}
	err := s.server.AddPolicyAssignment(ctx, &api.AddPolicyAssignmentRequest{Assignment: &api.PolicyAssignment{
		Name: "global", Direction: direction, Policies: []*api.Policy{policy}, DefaultAction: api.RouteAction_ACCEPT,
	}})
	if err != nil {
		return fmt.Errorf("policy %s: %w", name, err)
	}
	return nil
}
