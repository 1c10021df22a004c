import json
import math

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from synther_buffers.transitions import Field, Transitions, TransitionSpec

BOX = spaces.Box(-1.0, 1.0, (2,))
NESTED = spaces.Dict(
    {
        "arm": spaces.Dict({"angle": spaces.Box(-3.0, 3.0, (2,)), "grip": spaces.MultiBinary(1)}),
        "room": spaces.Discrete(3),
    }
)


def observation_field(space: spaces.Space) -> Field:
    (field,) = TransitionSpec.from_spaces(space, BOX).observation
    return field


class TestFromSpaces:
    @pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8", "int32", "int64"])
    @pytest.mark.parametrize("shape", [(), (1,), (3,), (2, 3), (2, 1, 2, 1)])
    def test_box_keeps_shape_and_dtype(self, shape: tuple[int, ...], dtype: str) -> None:
        field = observation_field(spaces.Box(0, 100, shape, dtype=np.dtype(dtype).type))
        assert (field.name, field.kind) == ("observation", "continuous")
        assert field.shape == shape
        assert field.dtype == dtype
        assert field.torch_dtype == getattr(torch, dtype)
        assert field.size == math.prod(shape) == len(field.low) == len(field.high)

    def test_box_bounds_are_per_element_in_row_major_order(self) -> None:
        low = np.array([[-1.0, -2.0], [-3.0, -np.inf]])
        high = np.array([[1.0, np.inf], [3.0, 4.0]])
        field = observation_field(spaces.Box(low, high, dtype=np.float64))
        assert field.low == (-1.0, -2.0, -3.0, -math.inf)
        assert field.high == (1.0, math.inf, 3.0, 4.0)

    def test_discrete_has_one_element_with_its_start(self) -> None:
        field = observation_field(spaces.Discrete(4, start=-2))
        assert field.kind == "categorical"
        assert field.shape == ()
        assert field.dtype == "int64"
        assert field.num_categories == (4,)
        assert field.start == (-2,)

    def test_multi_discrete_of_two_dimensions(self) -> None:
        field = observation_field(spaces.MultiDiscrete([[2, 3], [4, 5]], start=[[0, 1], [2, 3]]))
        assert field.kind == "categorical"
        assert field.shape == (2, 2)
        assert field.num_categories == (2, 3, 4, 5)
        assert field.start == (0, 1, 2, 3)

    def test_multi_binary(self) -> None:
        field = observation_field(spaces.MultiBinary((2, 3)))
        assert (field.kind, field.shape, field.dtype) == ("binary", (2, 3), "int8")

    def test_nested_dict_gives_one_field_for_each_leaf(self) -> None:
        spec = TransitionSpec.from_spaces(NESTED, BOX)
        assert [(field.name, field.kind) for field in spec.observation] == [
            ("observation.arm.angle", "continuous"),
            ("observation.arm.grip", "binary"),
            ("observation.room", "categorical"),
        ]
        assert [field.name for field in spec.next_observation] == [
            "next_observation.arm.angle",
            "next_observation.arm.grip",
            "next_observation.room",
        ]

    def test_next_observation_has_the_bounds_of_the_observation(self) -> None:
        spec = TransitionSpec.from_spaces(spaces.Box(-5.0, 7.0, (1,)), BOX)
        (field,) = spec.next_observation
        assert (field.low, field.high) == ((-5.0,), (7.0,))

    def test_reward_and_terminated(self) -> None:
        fields = {field.name: field for field in TransitionSpec.from_spaces(BOX, BOX).fields}
        assert fields["reward"] == Field("reward", "continuous", (), "float32", low=(-math.inf,), high=(math.inf,))
        assert fields["terminated"] == Field("terminated", "binary", (), "bool")
        assert "discount" not in fields

    def test_n_step_discounts_are_categories_with_float_values(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX, discounts=(0.9, 0.81))
        discount = spec.fields[-1]
        assert (discount.name, discount.kind, discount.dtype) == ("discount", "categorical", "float32")
        assert discount.num_categories == (2,)
        assert discount.values == (0.9, 0.81)

    def test_action_bounds_replace_those_of_the_space(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, spaces.Box(-2.0, 5.0, (3,)), action_bounds=(-1.0, 1.0))
        assert spec.action.low == (-1.0,) * 3
        assert spec.action.high == (1.0,) * 3

    def test_a_real_environment(self) -> None:
        env = gymnasium.make("CartPole-v1")
        spec = TransitionSpec.from_spaces(env.observation_space, env.action_space)
        assert spec.observation[0].shape == (4,)
        assert spec.action.num_categories == (2,)

    def test_image_is_refused(self) -> None:
        image = spaces.Box(0, 255, (84, 84, 3), dtype=np.uint8)
        with pytest.raises(ValueError, match=r"observation is an image \(uint8 Box of shape \(84, 84, 3\)\)"):
            TransitionSpec.from_spaces(image, BOX)
        with pytest.raises(ValueError, match=r"observation\.camera is an image"):
            TransitionSpec.from_spaces(spaces.Dict({"camera": image, "speed": BOX}), BOX)

    @pytest.mark.parametrize(
        ("shape", "dtype"), [((4, 3, 64, 64), np.uint8), ((84, 84), np.uint8), ((3, 64, 64), np.float32)]
    )
    def test_images_of_other_ranks_and_dtypes_are_refused(self, shape: tuple[int, ...], dtype: type) -> None:
        with pytest.raises(ValueError, match=r"observation is an image \(.* Box of shape .*Encode images first"):
            TransitionSpec.from_spaces(spaces.Box(0, 1, shape, dtype), BOX)

    def test_stacked_vectors_are_no_image(self) -> None:
        assert TransitionSpec.from_spaces(spaces.Box(0, 1, (4, 500)), BOX).observation[0].size == 2_000
        with pytest.raises(ValueError, match="is an image"):
            TransitionSpec.from_spaces(spaces.Box(0, 1, (4, 513)), BOX)

    @pytest.mark.parametrize(
        "space", [spaces.Discrete(50_000), spaces.Discrete(1_025), spaces.MultiDiscrete([3, 50_000])]
    )
    def test_too_many_categories_are_refused(self, space: spaces.Space) -> None:
        found = f"{int(getattr(space, 'n', 50_000)):,}"
        with pytest.raises(ValueError, match=rf"has {found} categories, which makes {found} columns; .* at most 1,024"):
            TransitionSpec.from_spaces(space, BOX)
        with pytest.raises(ValueError, match=rf"action has {found} categories"):
            TransitionSpec.from_spaces(BOX, space)
        assert TransitionSpec.from_spaces(spaces.Discrete(1_024), BOX).observation[0].width == 1_024

    def test_too_many_columns_are_refused(self) -> None:
        # Twice 2,046, two of the action, reward and terminated.
        assert sum(f.width for f in TransitionSpec.from_spaces(spaces.Box(0, 1, (2_046,)), BOX).fields) == 4_096
        with pytest.raises(ValueError, match=r"has 10,004 columns, 5,000 of them in observation; .* at most 4,096"):
            TransitionSpec.from_spaces(spaces.Box(0, 1, (5_000,)), BOX)
        with pytest.raises(ValueError, match=r"has 6,004 columns, 3,000 of them in observation"):
            TransitionSpec.from_spaces(spaces.MultiDiscrete([1_000] * 3), BOX)

    @pytest.mark.parametrize(
        "space", [spaces.Tuple((BOX, BOX)), spaces.Text(5), spaces.Sequence(BOX), spaces.Graph(BOX, BOX)]
    )
    def test_unsupported_space_is_refused(self, space: spaces.Space) -> None:
        with pytest.raises(TypeError, match=rf"observation is a {type(space).__name__} space; supported are Box"):
            TransitionSpec.from_spaces(space, BOX)
        with pytest.raises(TypeError, match=rf"action is a {type(space).__name__} space"):
            TransitionSpec.from_spaces(BOX, space)

    def test_dict_action_is_refused(self) -> None:
        with pytest.raises(TypeError, match="Dict actions are not supported"):
            TransitionSpec.from_spaces(BOX, spaces.Dict({"arm": BOX}))

    def test_key_with_the_separator_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"observation: the key 'a\.b' contains '\.'"):
            TransitionSpec.from_spaces(spaces.Dict({"a.b": BOX}), BOX)


class TestSpec:
    @pytest.mark.parametrize(
        "spec",
        [
            TransitionSpec.from_spaces(NESTED, spaces.Discrete(2, start=1), discounts=(0.99, 0.99**2)),
            TransitionSpec.from_spaces(spaces.Box(-np.inf, np.inf, (2, 2), np.float64), spaces.MultiDiscrete([2, 3])),
            TransitionSpec.from_spaces(spaces.Box(0.1, 0.7, (1,)), BOX, action_bounds=(-0.3, 0.3)),
        ],
    )
    def test_json_round_trip(self, spec: TransitionSpec) -> None:
        assert TransitionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    def test_empty_rows_fit_the_spec(self) -> None:
        spec = TransitionSpec.from_spaces(NESTED, spaces.MultiDiscrete([2, 3]), discounts=(0.99,))
        rows = spec.empty(5)
        spec.check(rows)
        assert list(rows.flat()) == [field.name for field in spec.fields]
        assert rows.observation["arm"]["grip"].dtype == torch.int8
        assert rows.discount.shape == (5,)

    def test_check_accepts_no_rows(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX)
        spec.check(spec.empty(0))

    def test_check_names_missing_and_unknown_fields(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX, discounts=(0.99,))
        one_step = TransitionSpec.from_spaces(BOX, BOX).empty(3)
        with pytest.raises(ValueError, match=r"have the fields \['action', .*\], but the spec wants .*'discount'"):
            spec.check(one_step)

    def test_check_names_the_field_with_a_wrong_shape(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX)
        rows = spec.empty(3)
        rows.action = torch.zeros(3, 1)
        with pytest.raises(ValueError, match=r"action has shape \(3, 1\), but the spec wants \(3, 2\) \(rows first\)"):
            spec.check(rows)

    def test_check_names_the_field_with_a_wrong_number_of_rows(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX)
        rows = spec.empty(3)
        rows.terminated = torch.zeros(4, dtype=torch.bool)
        with pytest.raises(ValueError, match=r"terminated has shape \(4,\), but the spec wants \(3,\)"):
            spec.check(rows)

    def test_check_names_the_field_with_a_wrong_dtype(self) -> None:
        spec = TransitionSpec.from_spaces(BOX, BOX)
        rows = spec.empty(3)
        rows.reward = rows.reward.double()
        with pytest.raises(ValueError, match=r"reward has dtype torch\.float64, but the spec wants torch\.float32"):
            spec.check(rows)


def nested_rows() -> Transitions:
    def observation(first: float) -> dict:
        return {"arm": {"angle": first + torch.arange(4.0)}, "room": torch.tensor([0, 1, 2, 0])}

    return Transitions(
        observation(0.0),
        torch.arange(8.0).reshape(4, 2),
        torch.tensor([0.0, 10.0, 20.0, 30.0]),
        observation(1.0),
        torch.tensor([False, False, True, False]),
    )


class TestTransitions:
    def test_flat_names_nested_tensors_and_leaves_out_the_absent_discount(self) -> None:
        assert list(nested_rows().flat()) == [
            "observation.arm.angle",
            "observation.room",
            "action",
            "reward",
            "next_observation.arm.angle",
            "next_observation.room",
            "terminated",
        ]

    def test_from_flat_inverts_flat_without_copying(self) -> None:
        rows = nested_rows()
        again = Transitions.from_flat(rows.flat())
        assert again.observation["arm"]["angle"] is rows.observation["arm"]["angle"]
        assert again.next_observation["room"] is rows.next_observation["room"]
        assert again.discount is None

    @pytest.mark.parametrize(
        ("index", "rewards"),
        [
            (slice(1, 3), [10.0, 20.0]),
            (torch.tensor([3, 0, 3]), [30.0, 0.0, 30.0]),
            (torch.tensor([True, False, False, True]), [0.0, 30.0]),
        ],
    )
    def test_indexing_takes_the_same_rows_of_every_tensor(self, index: object, rewards: list[float]) -> None:
        rows = nested_rows()[index]
        assert len(rows) == len(rewards)
        assert rows.reward.tolist() == rewards
        numbers = [int(reward / 10) for reward in rewards]
        assert rows.observation["arm"]["angle"].tolist() == numbers
        assert rows.next_observation["arm"]["angle"].tolist() == [number + 1 for number in numbers]
        assert rows.action[:, 0].tolist() == [2 * number for number in numbers]
        assert rows.terminated.tolist() == [number == 2 for number in numbers]

    def test_a_slice_is_a_view(self) -> None:
        rows = nested_rows()
        rows[1:2].reward.fill_(-1.0)
        assert rows.reward.tolist() == [0.0, -1.0, 20.0, 30.0]

    def test_nbytes_by_hand(self) -> None:
        # Per row: two angles and the reward and two actions of 4 bytes, two rooms of 8 bytes, one flag.
        assert nested_rows().nbytes == 4 * (2 * 4 + 4 + 2 * 4 + 2 * 8 + 1)

    def test_to_moves_every_tensor(self) -> None:
        rows = nested_rows().to("meta")
        assert rows.device.type == "meta"
        assert all(tensor.device.type == "meta" for tensor in rows.flat().values())


def discrete_rows(observation: torch.Tensor, action: torch.Tensor, **more: object) -> Transitions:
    count = len(observation)
    return Transitions(
        observation, action, torch.ones(count), observation.clone(), torch.zeros(count, dtype=torch.bool), **more
    )


class TestInfer:
    def test_floats_are_continuous_without_bounds(self) -> None:
        rows = discrete_rows(torch.zeros(5, 2, 3, dtype=torch.float64), torch.zeros(5, 1))
        spec = TransitionSpec.infer(rows)
        spaces_spec = TransitionSpec.from_spaces(
            spaces.Box(-np.inf, np.inf, (2, 3), np.float64), spaces.Box(-np.inf, np.inf, (1,), np.float32)
        )
        assert spec == spaces_spec
        spec.check(rows)

    @pytest.mark.parametrize(("values", "count", "start"), [([2, 0, 3], 4, 0), ([5], 6, 0), ([-2, 1], 4, -2)])
    def test_integer_actions_are_categories(self, values: list[int], count: int, start: int) -> None:
        spec = TransitionSpec.infer(discrete_rows(torch.zeros(len(values), 2), torch.tensor(values)))
        assert spec.action == Field("action", "categorical", (), "int64", num_categories=(count,), start=(start,))

    def test_multi_discrete_actions_are_categories_per_element(self) -> None:
        spec = TransitionSpec.infer(discrete_rows(torch.zeros(2, 2), torch.tensor([[0, 4], [1, 2]])))
        assert spec.action.num_categories == (2, 5)

    def test_single_integer_observations_are_categories_of_both_ends(self) -> None:
        rows = discrete_rows(torch.tensor([0, 1]), torch.zeros(2, 1))
        rows.next_observation = torch.tensor([1, 6])
        assert TransitionSpec.infer(rows).observation[0].num_categories == (7,)

    def test_other_integers_are_continuous(self) -> None:
        spec = TransitionSpec.infer(discrete_rows(torch.zeros(2, 3, dtype=torch.int8), torch.tensor([0, 1_024])))
        assert (spec.observation[0].kind, spec.observation[0].dtype) == ("continuous", "int8")
        assert spec.action.kind == "continuous"

    def test_booleans_are_binary(self) -> None:
        spec = TransitionSpec.infer(discrete_rows(torch.zeros(2, 3, dtype=torch.bool), torch.zeros(2, 1)))
        assert spec.observation[0].kind == "binary"

    def test_categories_once_seen_are_kept(self) -> None:
        first = TransitionSpec.infer(discrete_rows(torch.zeros(2, 1), torch.tensor([0, 4])))
        second = TransitionSpec.infer(discrete_rows(torch.zeros(2, 1), torch.tensor([-1, 2])), first)
        assert second.action.start == (-1,)
        assert second.action.num_categories == (6,)  # -1 to 4
        assert TransitionSpec.infer(discrete_rows(torch.zeros(2, 1), torch.tensor([1, 2])), second) == second

    def test_what_was_continuous_stays_so(self) -> None:
        first = TransitionSpec.infer(discrete_rows(torch.zeros(2, 1), torch.tensor([0, 5_000])))
        assert TransitionSpec.infer(discrete_rows(torch.zeros(2, 1), torch.tensor([0, 5])), first) == first

    def test_discounts_come_in_the_order_of_their_steps(self) -> None:
        rows = discrete_rows(torch.zeros(3, 1), torch.zeros(3, 1), discount=torch.tensor([0.25, 0.5, 0.5]))
        spec = TransitionSpec.infer(rows)
        assert spec.discounts == (0.5, 0.25)
        spec.check(rows)

    def test_extra_fields_are_found(self) -> None:
        extra = {"goal": torch.zeros(3, 2), "phase": torch.tensor([0, 1, 2])}
        rows = discrete_rows(torch.zeros(3, 1), torch.zeros(3, 1), extra=extra)
        spec = TransitionSpec.infer(rows)
        assert [(field.name, field.kind) for field in spec.extra] == [
            ("extra.goal", "continuous"),
            ("extra.phase", "categorical"),
        ]
        spec.check(rows)
        assert list(rows.flat()) == [field.name for field in spec.fields]
        assert TransitionSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec

    def test_images_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"observation is an image \(uint8 of shape \(3, 8, 8\)\)"):
            TransitionSpec.infer(discrete_rows(torch.zeros(2, 3, 8, 8, dtype=torch.uint8), torch.zeros(2, 1)))

    @pytest.mark.parametrize(
        ("shape", "dtype"), [((4, 3, 64, 64), torch.uint8), ((84, 84), torch.uint8), ((3, 64, 64), torch.float32)]
    )
    def test_images_of_other_ranks_and_dtypes_are_refused(self, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        with pytest.raises(ValueError, match="observation is an image"):
            TransitionSpec.infer(discrete_rows(torch.zeros(2, *shape, dtype=dtype), torch.zeros(2, 1)))

    def test_too_many_columns_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"has 10,003 columns, 5,000 of them in observation"):
            TransitionSpec.infer(discrete_rows(torch.zeros(2, 5_000), torch.zeros(2, 1)))

    def test_no_rows_are_refused(self) -> None:
        with pytest.raises(ValueError, match="transitions has no rows"):
            TransitionSpec.infer(discrete_rows(torch.zeros(0, 2), torch.zeros(0, 1)))

    def test_complex_numbers_are_refused(self) -> None:
        with pytest.raises(TypeError, match="observation has dtype complex64; wanted floats"):
            TransitionSpec.infer(discrete_rows(torch.zeros(2, 2, dtype=torch.complex64), torch.zeros(2, 1)))
