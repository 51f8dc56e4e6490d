"""Graph networks and networks of sets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from tests.zoo.zoo import Network, architecture, linen, normal

SENDERS, RECEIVERS = np.array([0, 1, 2, 3, 1, 4], np.int32), np.array([1, 2, 0, 0, 4, 3], np.int32)
NODES = 5


class GCN(nn.Module):
    """Kipf and Welling 2017: neighbours are averaged by a normalised adjacency matrix, which is an input."""

    hidden: int = 16
    classes: int = 7

    @nn.compact
    def __call__(self, x, adjacency):
        x = nn.relu(adjacency @ nn.Dense(self.hidden)(x))
        return adjacency @ nn.Dense(self.classes)(x)


@architecture("GCN", "Kipf & Welling 2017, Cora")
def gcn(full: bool) -> Network:
    net = GCN() if full else GCN(4, 2)
    inputs = normal(NODES, 1433 if full else 3), np.abs(normal(NODES, NODES))
    return linen(net, *inputs, found=(1, net.hidden, net.hidden))


class GIN(nn.Module):
    """Xu et al. 2019: sums over neighbours as segments, an MLP per layer, sums over all nodes read out."""

    hidden: int = 64
    layers: int = 4
    classes: int = 2

    @nn.compact
    def __call__(self, x, senders, receivers):
        total = 0
        for i in range(self.layers):
            near = jax.ops.segment_sum(x[senders], receivers, x.shape[0])
            x = nn.relu(nn.Dense(self.hidden, name=f"in_{i}")((1 + self.param(f"eps_{i}", nn.zeros, ())) * x + near))
            x = nn.relu(nn.Dense(self.hidden, name=f"out_{i}")(x))
            total = total + nn.Dense(self.classes, name=f"read_{i}")(jnp.sum(x, axis=0))
        return total


@architecture("GIN", "Xu et al. 2019")
def gin(full: bool) -> Network:
    net = GIN() if full else GIN(3, 2)
    units = 2 * net.layers * net.hidden
    return linen(net, normal(NODES, 4), SENDERS, RECEIVERS, found=(2 * net.layers, units, units))


class GAT(nn.Module):
    """Velickovic et al. 2018: attention over neighbours, by segments."""

    heads: int = 8
    width: int = 8
    classes: int = 7

    @nn.compact
    def __call__(self, x, senders, receivers):
        x = nn.elu(self.layer(x, senders, receivers, self.heads, self.width, "first"))
        return self.layer(x.reshape(x.shape[0], -1), senders, receivers, 1, self.classes, "second")[:, 0]

    def layer(self, x, senders, receivers, heads, width, name):
        h = nn.DenseGeneral((heads, width), use_bias=False, name=f"{name}_values")(x)
        left, right = (self.param(f"{name}_{side}", nn.initializers.normal(), (heads, width)) for side in "lr")
        score = nn.leaky_relu(jnp.sum(h * left, -1)[senders] + jnp.sum(h * right, -1)[receivers], 0.2)
        score = jnp.exp(score - jax.ops.segment_max(score, receivers, x.shape[0])[receivers])
        score = score / jax.ops.segment_sum(score, receivers, x.shape[0])[receivers]
        return jax.ops.segment_sum(score[..., None] * h[senders], receivers, x.shape[0])


# A head's values also make its scores: its units act on one another before they are read.
@architecture("GAT", "Velickovic et al. 2018, Cora")
def gat(full: bool) -> Network:
    net = GAT() if full else GAT(2, 3, 2)
    units = net.heads * net.width
    return linen(net, normal(NODES, 1433 if full else 4), SENDERS, RECEIVERS, found=(1, units, 0))


class GraphNetwork(nn.Module):
    """Battaglia et al. 2018: edges read both ends, nodes the sum of their edges; encode, process, decode."""

    hidden: int = 128
    steps: int = 2

    @nn.compact
    def __call__(self, nodes, edges, senders, receivers):
        def mlp(x, name):
            x = nn.relu(nn.Dense(self.hidden, name=f"{name}_0")(x))
            return nn.relu(nn.Dense(self.hidden, name=f"{name}_1")(x))

        nodes, edges = mlp(nodes, "nodes_in"), mlp(edges, "edges_in")
        for i in range(self.steps):
            edges = mlp(jnp.concatenate([edges, nodes[senders], nodes[receivers]], axis=-1), f"edges_{i}")
            total = jax.ops.segment_sum(edges, receivers, nodes.shape[0])
            nodes = mlp(jnp.concatenate([nodes, total], axis=-1), f"nodes_{i}")
        return nn.Dense(1, name="out")(nodes)


@architecture("Graph network", "Battaglia et al. 2018")
def graph_network(full: bool) -> Network:
    net = GraphNetwork() if full else GraphNetwork(3, 1)
    groups = 4 + 4 * net.steps
    inputs = normal(NODES, 3), normal(len(SENDERS), 2), SENDERS, RECEIVERS
    return linen(net, *inputs, found=(groups, groups * net.hidden, groups * net.hidden))


class DeepSets(nn.Module):
    """Zaheer et al. 2017: a network for each element, a sum, a network for the set."""

    widths: tuple[int, int, int] = (256, 128, 256)

    @nn.compact
    def __call__(self, x):
        a, b, c = self.widths
        x = nn.tanh(nn.Dense(b)(nn.tanh(nn.Dense(a)(x))))
        return nn.Dense(1)(nn.tanh(nn.Dense(c)(jnp.sum(x, axis=1))))


@architecture("DeepSets", "Zaheer et al. 2017")
def deep_sets(full: bool) -> Network:
    net = DeepSets() if full else DeepSets((3, 4, 2))
    return linen(net, normal(2, 5, 3), found=(3, sum(net.widths), sum(net.widths)))
